"""Which systems run: built-in ones, contenders of a recipe, what their models are, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from raft.config import BuiltInSystem, EvaluateRecipe, EvaluateSweepRecipe, load_recipe
from raft.errors import InputError, RecipeError, UsageError
from raft.evaluation.systems import SYSTEMS, choose_systems, contenders_of, find_lead, sources_of
from raft.prompts import ANSWER_MARK, QUOTE_BEGIN, REFUSAL

SHIPPED = Path(__file__).parents[2] / "configs" / "evaluate"


def recipe_of(tmp_path: Path, text: str) -> EvaluateRecipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(EvaluateRecipe, path)


def test_the_names_a_recipe_may_give_are_the_systems_that_there_are() -> None:
    assert set(get_args(BuiltInSystem)) == set(SYSTEMS)


def test_contenders_are_systems_and_share_a_model_where_they_name_the_same(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, """
        adapter = "runs/tuned"
        model.model = "base"
        [[contenders]]
        name = "other_words"
        [[contenders]]
        name = "same_weights"
        adapter = "runs/tuned"
        documents = "oracle"
        [[contenders]]
        name = "plain"
        title = "RAFT without chain of thought"
        adapter = "runs/plain"
        [[contenders]]
        name = "plain_short"
        adapter = "runs/plain"
        short = true
        [[contenders]]
        name = "endpoint"
        model = { model = "large", base_url = "http://localhost:1/v1" }
        documents = "none"
        shots = true
        """)  # fmt: skip
    found = {system.name: system for system in contenders_of(recipe)}
    assert [*found] == ["other_words", "same_weights", "plain", "plain_short", "endpoint"]
    assert {name: s.weights for name, s in found.items()} == {
        "other_words": "base", "same_weights": "raft", "plain": ":plain", "plain_short": ":plain",
        "endpoint": ":endpoint",
    }  # fmt: skip
    assert {name for name, s in found.items() if s.tuned} == {"same_weights", "plain", "plain_short"}
    assert {name: s.documents for name, s in found.items() if s.documents != "hits"} == {
        "same_weights": "oracle", "endpoint": "none",
    }  # fmt: skip
    assert found["plain"].title == "RAFT without chain of thought"
    assert found["endpoint"].title == "endpoint"
    assert [s.name for s in found.values() if s.quotes] == ["other_words", "same_weights", "plain"]
    sources = sources_of(recipe)
    assert [*sources] == ["base", "raft", ":plain", ":endpoint"]
    assert sources[":plain"] == (recipe.model, Path("runs/plain"))
    systems, notes = choose_systems(["rag", "dsf"], ["base", "raft"], [*found.values()])  # the adapter has a user
    assert [s.name for s in systems] == ["rag", *found]
    assert notes == ["no dsf_adapter is given, so that dsf cannot run"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "My System"', r"contenders\.0\.name = 'My System'"),
        ('name = "a"\nshort = true\ndocuments = "none"', "short asks over documents, and documents is 'none'"),
        (
            'name = "a"\nadapter = "x"\nmodel = { model = "m", base_url = "http://h/v1" }',
            "adapter x cannot be loaded onto the endpoint http://h/v1",
        ),
        (
            'name = "a"\nadapter = "x"\nmodel = { model = "m", adapter = "y" }',
            r"adapter is x and model\.adapter y; set one",
        ),
        ('name = "a"\ndocuments = "some"', r"contenders\.0\.documents"),
        ('name = "a"\npromt = "x"', r"'contenders\.0\.promt' \(did you mean 'prompt'\?\)"),
    ],
)
def test_a_contender_that_cannot_be_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        recipe_of(tmp_path, f"[[contenders]]\n{text}\n")
    assert "\n" not in str(caught.value)


def test_names_are_told_apart(tmp_path: Path) -> None:
    def chosen(*names: str) -> None:
        text = "".join(f'[[contenders]]\nname = "{name}"\n' for name in names)
        choose_systems(["rag"], ["base"], contenders_of(recipe_of(tmp_path, text)))

    with pytest.raises(UsageError, match="contender 'raft' has the name of a built-in system"):
        chosen("mine", "raft")
    with pytest.raises(UsageError, match="contenders names 'mine' more than once"):
        chosen("mine", "other", "mine")
    chosen("mine", "base")  # no system is called so
    with pytest.raises(UsageError, match="systems is empty, and there are no contenders"):
        choose_systems([], ["base"])


@pytest.mark.parametrize(
    ("titles", "says"),
    [
        (
            ("The plain one", "the  Plain one"),
            "'a' and 'b' both have the title 'the Plain one'. Give one another title",
        ),
        (("RAG", "other"), "'rag' and 'a' both have the title 'RAG'"),
        (("b", None), "'a' and 'b' both have the title 'b'"),
        (("   ", None), "contender 'a' has the title '   '; expected words"),
        (("two\\nlines", None), r"contender 'a' has the title 'two\nlines'; expected words without control characters"),
        (("bell\\u0007", None), "without control characters"),
        (("split\\u2028line", None), "without control characters"),
    ],
)
def test_titles_tell_systems_apart(tmp_path: Path, titles: tuple[str | None, str | None], says: str) -> None:
    def chosen(*titles: str | None) -> list[str]:
        rows = [
            f'[[contenders]]\nname = "{name}"\n' + (f'title = "{title}"\n' if title is not None else "")
            for name, title in zip("ab", titles, strict=True)
        ]
        return [
            s.title for s in choose_systems(["rag"], ["base"], contenders_of(recipe_of(tmp_path, "".join(rows))))[0]
        ]

    with pytest.raises(UsageError) as refused:
        chosen(*titles)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert chosen("Zürich | 東京", None) == ["RAG", "Zürich | 東京", "b"]


def test_the_lead_is_the_one_asked_for_then_raft_then_the_first_contender(tmp_path: Path) -> None:
    own = contenders_of(recipe_of(tmp_path, '[[contenders]]\nname = "b"\n[[contenders]]\nname = "a"\n'))
    rag, raft = SYSTEMS["rag"], SYSTEMS["raft"]
    assert find_lead(None, [rag, raft, *own], own) == "raft"
    assert find_lead("rag", [rag, raft, *own], own) == "rag"
    assert find_lead(None, [rag, *own], own) == "b"
    assert find_lead(None, [rag], []) is None
    with pytest.raises(UsageError, match="lead is 'raft'; expected one of the systems that run: rag, b, a"):
        find_lead("raft", [rag, *own], own)


def test_a_prompt_file_takes_the_place_of_the_instruction(tmp_path: Path) -> None:
    text = f'[[contenders]]\nname = "a"\nprompt = "{(SHIPPED / "terse.txt").as_posix()}"\n'
    (system,) = contenders_of(recipe_of(tmp_path, text))
    assert system.instruction is not None
    assert {mark in system.instruction for mark in (ANSWER_MARK, QUOTE_BEGIN, REFUSAL)} == {True}
    assert "{" not in system.instruction


@pytest.mark.parametrize(
    ("kind", "prompt", "says"),
    [
        ("", "Answer with {answer} or {refusal}.", r"lacks \{quote_begin\}, \{quote_end\}; expected \{quote_begin\}, "),
        ('documents = "none"', "Say {answer} and a word.", r"lacks \{refusal\}; expected \{answer\}, \{refusal\}"),
        ("short = true", "A word.", r"lacks \{refusal\}"),
        ("short = true", "A word or {refusal}, {question}.", r"has \{question\}; expected \{refusal\}"),
        ("", None, r"cannot be read \(No such file"),
    ],
)
def test_a_prompt_that_the_parser_could_not_follow_is_refused(
    tmp_path: Path, kind: str, prompt: str | None, says: str
) -> None:
    path = tmp_path / "prompt.txt"
    if prompt is not None:
        path.write_text(prompt)
    recipe = recipe_of(tmp_path, f'[[contenders]]\nname = "mine"\nprompt = "{path.as_posix()}"\n{kind}\n')
    with pytest.raises(InputError, match=rf"prompt .*prompt\.txt of contender 'mine' {says}") as caught:
        contenders_of(recipe)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("A word or {refusal}.", encoding="utf-8-sig")
    recipe = recipe_of(tmp_path, f'[[contenders]]\nname = "a"\nprompt = "{path.as_posix()}"\nshort = true\n')
    assert [system.instruction for system in contenders_of(recipe)] == [f"A word or {REFUSAL}."]


def test_sweeps_take_no_contenders() -> None:
    with pytest.raises(RecipeError, match="leave contenders and lead out"):
        load_recipe(EvaluateSweepRecipe, None, ['contenders=[{name="mine"}]'])


def test_shipped_contenders_can_run() -> None:
    recipe = load_recipe(EvaluateRecipe, SHIPPED / "contenders.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(SHIPPED.parents[1])
        systems, _ = choose_systems(recipe.systems, tuple(sources_of(recipe)), contenders_of(recipe))
    assert "terse" in {system.name for system in systems}
