"""Faults planted into whole comparisons: each is refused or shown, none is averaged over.

The list is that of faults found in other evaluation programs: failures that become NaN and leave the mean, one bad
record that ends the run, empty outputs that are skipped or score well, quotes of a document [0], scoring by parts of
words, p-values of zero, scores that follow the batch size, comparisons over other questions; and of ours: swapped and
missing rows, metrics that raise, references that are empty, questions that stand there twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raft.config import ChatModelRecipe, EvaluateRecipe
from raft.errors import InputError
from raft.evaluation import replies
from raft.evaluation.compare import JOURNAL, evaluate
from raft.evaluation.report import Report
from raft.llm.chat import ChatModel, ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.places import partial_folder
from raft.prompts import ANSWER_MARK, QUOTE_BEGIN, QUOTE_END, render_target
from raft.records import QaItem
from tests.evaluation import world
from tests.evaluation.adapters import make_adapter

Row = dict[str, Any]


@pytest.fixture
def recipe(world_recipe: EvaluateRecipe) -> EvaluateRecipe:
    return world_recipe.model_copy(update={"systems": ("rag", "rag_oracle")})


def run(recipe: EvaluateRecipe, out: Path, script: Callable[[ChatRequest], str], **options: Any) -> Report:
    return evaluate(recipe, out, base=lambda: ScriptedModel(script, "base"), **options)


def asked_of(recipe: EvaluateRecipe, items: Sequence[QaItem], folder: Path) -> EvaluateRecipe:
    return recipe.model_copy(update={"questions": world.write_questions(folder / "questions.jsonl", items)})


def never() -> ChatModel:
    raise AssertionError("a model was opened for questions that cannot be used")


def saved(folder: Path) -> Any:
    def constant(name: str) -> None:
        pytest.fail(f"{name} stands in report.json")

    return json.loads((folder / "report.json").read_text(), parse_constant=constant)


# --- rows ------------------------------------------------------------------------------------------------------------


def swap_two_ids(rows: list[Row]) -> list[Row]:
    first, second, *others = rows
    return [{**first, "question_id": second["question_id"]}, {**second, "question_id": first["question_id"]}, *others]


def swap_systems(rows: list[Row]) -> list[Row]:
    turned = {"raft": "rag", "rag": "raft"}
    return [{**row, "system": turned[row["system"]]} for row in rows]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        pytest.param(swap_two_ids, "2 of 30 replies in answers.jsonl are to other prompts", id="swapped ids"),
        pytest.param(swap_systems, "30 of 30 replies in answers.jsonl are to other prompts", id="swapped systems"),
        pytest.param(lambda rows: rows[3:], "", id="missing rows"),
        pytest.param(lambda rows: [*rows, *rows[:4]], "", id="repeated rows"),
        pytest.param(lambda rows: [{**rows[0], "question_id": "toll-77"}, *rows[1:]], "1 of 30 replies", id="stranger"),
        pytest.param(lambda rows: [{k: v for k, v in rows[0].items() if k != "asked"}, *rows[1:]], "1 of 30", id="old"),
    ],
)
def test_rows_of_a_journal_that_are_swapped_missing_or_repeated_are_asked_again(
    recipe: EvaluateRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[list[Row]], list[Row]],
    told: str,
) -> None:
    def stop(done: int, total: int, system: str) -> None:
        if done == 30:
            raise KeyboardInterrupt

    recipe = recipe.model_copy(update={"systems": ("rag", "raft")})  # the very same prompts to two models
    tuned = partial(ScriptedModel, world.good_reader, "tuned")
    whole = run(recipe, tmp_path / "whole", world.good_reader, tuned=tuned)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "report", world.good_reader, tuned=tuned, on_reply=stop)
    journal = partial_folder(tmp_path / "report") / JOURNAL
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(rows) == 30
    journal.write_text("".join(json.dumps(row) + "\n" for row in fault(rows)))
    capsys.readouterr()
    report = run(recipe, tmp_path / "report", world.good_reader, tuned=tuned, resume=True)
    assert [(r.system, r.question_id, r.text) for r in report.results] == [
        (r.system, r.question_id, r.text) for r in whole.results
    ]
    assert [s.f1 for s in report.systems] == [s.f1 for s in whole.systems]
    warned = capsys.readouterr().err
    assert told in warned
    assert ("asked again" in warned) == bool(told)


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [lambda said, references: 1 / 0, lambda said, references: float("nan")])
def test_a_metric_that_raises_or_gives_nan_ends_the_run_by_name_and_the_replies_are_kept(
    recipe: EvaluateRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., float]
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(replies.AGAINST_REFERENCES, "rouge_l", broken)
        with pytest.raises(InputError, match=r"metric rouge_l failed on question 'toll-3'"):
            run(recipe, tmp_path / "report", world.good_reader)
    assert not (tmp_path / "report").exists()
    silent = ScriptedModel(world.good_reader)
    report = evaluate(recipe, tmp_path / "report", base=lambda: silent, resume=True)
    assert silent.requests == []
    assert len(report.results) == 32


def test_a_reply_that_fails_stays_in_the_mean(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    def sometimes(request: ChatRequest) -> str:
        if request.key in ("toll-4", "mayor-0", "market-5"):
            raise TimeoutError("no answer after 120 s")
        return world.good_reader(request)

    run(recipe, tmp_path / "report", sometimes)
    report = saved(tmp_path / "report")
    (oracle,) = [s for s in report["systems"] if s["system"] == "rag_oracle"]
    assert (oracle["n"], oracle["failures"]) == (16, 3)
    for figure in ("em", "f1", "rouge_l", "contains", "truthfulness"):
        assert oracle[figure]["mean"] == pytest.approx(13 / 16)
    assert Counter(row["system"] for row in report["results"]) == {"rag": 16, "rag_oracle": 16}
    assert report["verdict"][-1] == "6 of 32 replies failed; they count as wrong answers."


def test_one_bad_record_costs_one_answer(recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path) -> None:
    """A question that no window holds, put to a real model among others."""
    items = [item for item in world.questions() if item.id in ("toll-3", "toll-4")]
    long = replace(items[0], id="long", question="Why? " * 5000)
    changes = {
        "model": ChatModelRecipe(model=str(tiny_folder)), "max_new_tokens": 4, "systems": ("rag",),
    }  # fmt: skip
    recipe = asked_of(recipe, [items[0], long, items[1]], tmp_path).model_copy(update=changes)
    report = evaluate(recipe, tmp_path / "report")
    assert {row.question_id: row.error is None for row in report.results} == {
        "toll-3": True, "long": False, "toll-4": True,
    }  # fmt: skip
    assert (report.systems[0].n, report.systems[0].failures) == (3, 1)


def test_who_says_nothing_scores_nothing(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    for name, silence in (("empty", ""), ("blank", " \n "), ("mark", f"{ANSWER_MARK} ")):
        report = run(recipe, tmp_path / name, lambda request, said=silence: said)  # type: ignore[misc]
        for scores in report.systems:
            assert scores.n == 16
            figures = (scores.em, scores.f1, scores.rouge_l, scores.contains, scores.numeric, scores.groundedness)
            assert {figure.mean for figure in figures if figure is not None} == {0.0}
            assert (scores.abstention_recall, scores.citation_recall, scores.quoted_answers) == (0.0, 0.0, 0.0)
        assert not any(row.right or row.abstained for row in report.results)


def test_a_document_zero_is_no_document(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    """Read as an index from the end, [0] would be the last document."""

    def zero(request: ChatRequest) -> str:
        return f"Document [0] says {QUOTE_BEGIN}The ferry is free.{QUOTE_END}\n{ANSWER_MARK} 23 crowns"

    report = run(recipe, tmp_path / "report", zero)
    for scores in report.systems:
        assert (scores.quotes, scores.quote_validity, scores.citation_recall) == (16, 0.0, 0.0)


def test_a_part_of_a_word_or_number_is_no_answer(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    """The references are 19, 23 ... 43 crowns and day 5 ... day 11; a digit before or behind makes another number."""

    def wider(request: ChatRequest) -> str:
        town = next(n for n, name in enumerate(world.TOWNS) if name in world.asked(request))
        return render_target(f"1{world.toll(town)}" if "toll" in world.asked(request) else f"day {town + 2}7")

    report = run(recipe, tmp_path / "report", wider)
    assert {(row.em, row.contains, row.numeric or 0.0) for row in report.results} == {(0.0, 0.0, 0.0)}


def test_no_p_value_is_zero(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"systems": ("rag_oracle", "raft_oracle"), "lead": "raft_oracle"})
    report = evaluate(
        recipe,
        tmp_path / "report",
        base=lambda: ScriptedModel(lambda request: render_target("nothing of the kind"), "base"),
        tuned=lambda: ScriptedModel(world.good_reader, "tuned"),
    )
    (difference,) = report.differences
    assert difference.f1.mean == 1.0
    assert 1 / (recipe.resamples + 1) <= difference.p <= difference.p_holm


def test_scores_do_not_follow_the_batch_size(recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path) -> None:
    adapter, reports = make_adapter(tmp_path / "adapter", tiny_folder), []  # without it the model says nothing
    for tokens in (64, 32768):
        model = ChatModelRecipe(model=str(tiny_folder), adapter=adapter, batch_tokens=tokens)
        changes = {"model": model, "max_new_tokens": 12, "systems": ("rag", "rag_short"), "limit": 5}
        reports.append(evaluate(recipe.model_copy(update=changes), tmp_path / str(tokens)))
    one, many = ([(row.system, row.question_id, row.text, row.f1) for row in report.results] for report in reports)
    assert one == many
    assert len({text for _, _, text, _ in one}) > 3


# --- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "   "])
def test_an_empty_reference_is_refused_before_a_model_is_opened(
    recipe: EvaluateRecipe, tmp_path: Path, answer: str
) -> None:
    items = world.questions()
    faulty = asked_of(recipe, [*items[:8], replace(items[8], answer=answer), *items[9:]], tmp_path)
    with pytest.raises(InputError, match=r"questions\.jsonl .*9.*answer is empty"):
        evaluate(faulty, tmp_path / "report", base=never)


def test_an_id_that_stands_twice_is_refused_before_a_model_is_opened(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    items = world.questions()
    faulty = asked_of(recipe, [*items, replace(items[8], question="What else?")], tmp_path)
    with pytest.raises(InputError, match=r"id 'toll-4' stands there twice"):
        evaluate(faulty, tmp_path / "report", base=never)


def test_questions_that_are_asked_twice_are_shown(
    recipe: EvaluateRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = world.questions()
    again = replace(items[8], id="again", question=items[8].question.lower().replace(" of", "  of"))
    report = run(asked_of(recipe, [*items, again], tmp_path), tmp_path / "report", world.good_reader)
    note = "1 of 17 questions repeat another one's words ('again' repeats 'toll-4'); each of them counts"
    assert note in report.notes
    assert note in capsys.readouterr().err
    assert note in (tmp_path / "report" / "report.md").read_text()
    assert report.question_set["clusters"] == 9  # both rest on one document: intervals do not count it twice


def test_reports_over_other_questions_are_told_apart_by_their_hash(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    items = world.questions()
    changed = {
        "reference": [*items[:8], replace(items[8], answer="24 crowns"), *items[9:]],
        "words": [*items[:8], replace(items[8], question="What is it?"), *items[9:]],
        "fewer": [*items[:8], *items[9:]],
        "swapped": [
            *items[:8], replace(items[8], answer=items[10].answer), items[9],
            replace(items[10], answer=items[8].answer), *items[11:],
        ],
        "order": items[::-1],
    }  # fmt: skip
    first = run(recipe, tmp_path / "first", world.good_reader).question_set["hash"]
    hashes = {}
    for name, others in changed.items():
        (tmp_path / f"of-{name}").mkdir()
        other = asked_of(recipe, others, tmp_path / f"of-{name}")
        hashes[name] = run(other, tmp_path / name, world.good_reader).question_set["hash"]
    assert hashes.pop("order") == first
    assert len({first, *hashes.values()}) == 5
