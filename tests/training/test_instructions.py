"""General instructions as training data, alone and among RAFT examples."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raft.artifacts import hash_file, open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import InputError, RecipeError
from raft.indexing.build import build_index
from raft.models import load_tokenizer, prompt_ids
from raft.prompts import Message
from raft.records import question_key
from raft.rows import read_rows, write_rows
from raft.training.instructions import is_rows_file, mix_in, read_instructions, tokenize_instruction
from raft.training.packing import pack
from raft.training.plan import _replayed, held_back, make_plan
from raft.training.run import train
from raft.training.search import check_inputs
from raft.training.tokenize import Tokenized
from tests.factories import COLOURS, write_dataset
from tests.training.test_run import recipe

QUICK = {"optim.epochs": 1, "watch.probe": False}


def pairs(count: int, word: str = "thing") -> list[dict]:
    return [{"prompt": f"Say {word} {n}.", "completion": f"{word} {n} {COLOURS[n % 8]}"} for n in range(count)]


def write(path: Path, rows: list) -> Path:
    write_rows(path, rows)
    return path


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "general.jsonl", pairs(40))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


# --- rows ------------------------------------------------------------------------------------------------------------


def test_the_three_forms_say_the_same(tmp_path: Path, tokenizer) -> None:
    turns = [{"role": "user", "content": "Add.\n\n2 and 3"}, {"role": "assistant", "content": "5"}]
    rows = [
        {"messages": turns, "id": "a", "source": "b"},
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"prompt": "Add.\n\n2 and 3", "completion": " 5"},
        {"messages": turns, "prompt": "what datasets often carry beside the messages"},
    ]
    read = read_instructions(write(tmp_path / "rows.jsonl", rows))
    assert read == [read[0]] * 4
    (example,) = tokenize_instruction(tokenizer, read[0])
    assert example.prompt == prompt_ids(tokenizer, [Message("user", "Add.\n\n2 and 3")])
    assert tokenizer.decode(example.target) == "5" + tokenizer.eos_token


def test_every_turn_of_the_assistant_is_learned_behind_all_before_it(tmp_path: Path, tokenizer) -> None:
    said = [
        ("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2"),
        ("user", "Three?"), ("assistant", "3"),
    ]  # fmt: skip
    turns = [{"role": role, "content": text} for role, text in said]
    turns[4]["weight"] = 0
    (row,) = read_instructions(write(tmp_path / "rows.jsonl", [{"messages": turns}]))
    first, last = tokenize_instruction(tokenizer, row)
    assert [tokenizer.decode(each.target[:-1]) for each in (first, last)] == ["1", "3"]
    assert last.prompt == prompt_ids(tokenizer, [Message(role, text) for role, text in said[:6]])
    packed = pack([first, last])
    assert packed.segments[0] >= len(first.prompt) - 1  # they share all that stands before the first reply
    assert tokenizer.decode(packed.labels) == f"1{tokenizer.eos_token}3{tokenizer.eos_token}"


def test_all_bad_rows_are_named_in_one_line(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": " "},
        {"text": "a"},
        {"messages": []},
        {"messages": [user, user, assistant]},
        {"messages": [user, {"role": "tool", "content": "x"}]},
        {"messages": [user, assistant, user]},
        {"messages": [user, assistant | {"content": None, "tool_calls": [1]}]},
        {"messages": [user, assistant | {"weight": 0}]},
        {"messages": [user, assistant | {"weight": 2}]},
        {"instruction": "a", "output": 5},
        {"messages": [user, assistant], "tools": [{"name": "x"}]},
        {"messages": ["hello"]},
    ]
    with pytest.raises(InputError) as caught:
        read_instructions(write(tmp_path / "rows.jsonl", rows))
    said = str(caught.value)
    assert "\n" not in said
    assert "has 12 bad rows: row 2: completion is ' ', expected some text; row 3: it has neither messages nor" in said
    for part in (
        "row 4: messages is []",
        "row 5: turn 2: role is 'user', expected assistant",
        "row 6: turn 2: role is 'tool', expected assistant",
        "row 7: its last turn is the user's, expected the assistant's",
        "row 8: turn 2: it calls a tool",
        "row 9: every turn of the assistant has weight 0",
        "row 10: turn 2: weight is 2, expected 0 or 1",
        "row 11: output is 5, expected some text",
        "; and 2 more",
    ):
        assert part in said, part


def test_a_file_without_rows_or_that_is_not_there_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"empty.jsonl holds no row"):
        read_instructions(tmp_path / "empty.jsonl")
    assert is_rows_file(tmp_path / "missing.jsonl")
    assert not is_rows_file(tmp_path)
    with pytest.raises(InputError, match=r"missing.jsonl cannot be read"):
        train(recipe(tiny_folder, **QUICK), tmp_path / "missing.jsonl", tmp_path / "out")


def test_some_rows_are_held_back_but_never_all() -> None:
    names = [f"row {n}" for n in range(400)]
    assert 8 <= len(held_back(names, seed=0)) <= 35
    assert held_back(names, seed=0) != held_back(names, seed=1)
    assert held_back(["a", "b", "a"], seed=0) < {"a", "b"}
    assert len(held_back(["a", "b"], seed=3)) == 1
    assert held_back(["a", "a"], seed=0) == set()


# --- trained on ------------------------------------------------------------------------------------------------------


def test_instructions_are_learned_and_the_manifest_says_from_what(
    tiny_folder: Path, general: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_folder, **QUICK | {"optim.groups_per_step": 8})
    plan = make_plan(chosen, general, tiny_folder)
    tokenizer = load_tokenizer(tiny_folder)
    trained, kept = (
        {tokenizer.decode(each) for p in part for each in [p.labels]} for part in (plan.schedule, plan.dev)
    )
    said = "".join(trained)
    assert kept
    assert all(reply not in said for reply in kept)
    assert said.count("thing") + "".join(kept).count("thing") == 40
    summary = train(chosen, general, tmp_path / "tuned")
    rows = list(read_rows(tmp_path / "tuned" / "log.jsonl"))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert summary.best_dev_loss is not None
    manifest = open_artifact(tmp_path / "tuned", "adapter")
    assert manifest.inputs["data"] == hash_file(general)
    assert (manifest.facts["examples"], manifest.facts["labels"]) == (40 - len(kept), [])
    seen = json.loads((tmp_path / "tuned" / "seen.json").read_text())
    assert question_key("Say thing 7.") in seen["questions"]


def test_rows_that_are_too_long_are_dropped_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [*pairs(10), *({"prompt": "word " * 90, "completion": f"{n}"} for n in range(4))]
    file = write(tmp_path / "rows.jsonl", rows)
    plan = make_plan(recipe(tiny_folder, max_tokens=64), file, tiny_folder)
    ids = [row.id for row in read_instructions(file)]
    held = held_back(ids, seed=0)
    assert (plan.examples, plan.dropped) == (14 - len(held), sum(each not in held for each in ids[10:]))
    assert plan.dropped
    lengthy = write(
        tmp_path / "lengthy.jsonl", [*pairs(4), *({"prompt": "word " * 90, "completion": f"{n}"} for n in range(40))]
    )
    all_ids = [row.id for row in read_instructions(lengthy)]
    kept_back = held_back(all_ids, seed=0)
    counted = make_plan(recipe(tiny_folder, max_tokens=64), lengthy, tiny_folder)
    assert counted.dev_dropped == sum(each in kept_back for each in all_ids[4:]) > 0
    with pytest.raises(InputError, match=r"no train example of .* fits max_tokens = 64"):
        make_plan(recipe(tiny_folder, max_tokens=64), write(tmp_path / "long.jsonl", rows[10:]), tiny_folder)


def test_short_rows_of_a_step_are_computed_together_and_the_training_stays_the_same(
    tiny_folder: Path, general: Path, tmp_path: Path
) -> None:
    weights, curves = [], []
    for together in (True, False):
        chosen = recipe(tiny_folder, **QUICK | {"optim.groups_per_step": 8, "pack_unrelated": together})
        plan = make_plan(chosen, general, tiny_folder)
        assert plan.per_step == (1 if together else 8)
        assert len(plan.schedule) == (plan.steps if together else plan.examples)
        train(chosen, general, tmp_path / str(together))
        curves.append([row["loss"] for row in read_rows(tmp_path / str(together) / "log.jsonl") if "loss" in row])
        weights.append(load_file(tmp_path / str(together) / "adapter" / "adapter_model.safetensors"))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], atol=2e-4, rtol=1e-2)


def test_a_search_finds_its_dev_rows_in_the_file(tiny_folder: Path, general: Path, tmp_path: Path) -> None:
    assert check_inputs(recipe(tiny_folder), general)["data"] == hash_file(general)
    with pytest.raises(InputError, match="A file of two rows or more keeps one back"):
        check_inputs(recipe(tiny_folder), write(tmp_path / "one.jsonl", pairs(1)))


# --- replayed --------------------------------------------------------------------------------------------------------


def example(n: int, answer: int) -> Tokenized:
    return Tokenized(str(n), [n, n], [n] * answer)


def test_replay_has_its_share_of_the_loss_evenly_spread_and_repeats_nothing_too_early() -> None:
    main = [pack([example(n, 9)]) for n in range(60)]
    pool = [[pack([example(100 + n, 3)])] for n in range(30)]
    mixed = mix_in(main, pool, 0.25, seed=0)
    assert [each for each in mixed if each.tokens[0] < 100] == main
    replayed = [each.tokens[0] for each in mixed if each.tokens[0] >= 100]
    assert sum(len(each.labels) for each in mixed if each.tokens[0] >= 100) == 180  # a quarter of 540 + 180
    assert set(replayed[:30]) == set(replayed[30:]) == set(range(100, 130))
    assert replayed[:30] != replayed[30:]
    places = [at for at, each in enumerate(mixed) if each.tokens[0] >= 100]
    assert max(b - a for a, b in pairwise(places)) <= 3
    assert mix_in(main, pool, 0.25, seed=0) == mixed
    assert mix_in(main, pool, 0.25, seed=1) != mixed


def test_replayed_turns_share_no_prefix_where_attention_knows_none(tiny_folder: Path, tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"word {n}"} for n in range(2) for role in ("user", "assistant")]
    rows = str(write(tmp_path / "talks.jsonl", [{"messages": turns}] * 2))
    shared, alone = (
        _replayed(
            recipe(tiny_folder, objective="pretrain", attention=attention, precision="auto", **{"replay.data": rows}),
            load_tokenizer(tiny_folder),
        )
        for attention in ("auto", "flash")
    )
    assert [len(talk) for talk in shared] == [1, 1]
    assert [len(talk) for talk in alone] == [2, 2]


def test_replay_joins_a_dataset_and_leaves_its_dev_loss_alone(
    tiny_folder: Path, dataset: Path, general: Path, tmp_path: Path
) -> None:
    replay = {"replay.data": str(general), "replay.share": 0.2}
    alone = make_plan(recipe(tiny_folder, pack_unrelated=False), dataset, tiny_folder)
    mixed = make_plan(recipe(tiny_folder, pack_unrelated=False, **replay), dataset, tiny_folder)
    assert (mixed.dev, mixed.replayed) == (alone.dev, 40)
    own = [each for each in mixed.schedule if each in alone.schedule]
    assert own == alone.schedule
    counted = [sum(len(each.labels) for each in plan.schedule) for plan in (alone, mixed)]
    assert 1 - counted[0] / counted[1] == pytest.approx(0.2, abs=0.03)
    train(recipe(tiny_folder, **QUICK, **replay), dataset, tmp_path / "tuned")
    manifest = open_artifact(tmp_path / "tuned", "adapter")
    assert manifest.inputs["replay"] == hash_file(general)
    assert manifest.facts["replayed"] == 40
    seen = json.loads((tmp_path / "tuned" / "seen.json").read_text())
    assert {question_key("Say thing 7."), question_key("What colour is the door of ward 1?")} <= set(seen["questions"])


def test_replay_joins_the_documents_of_an_index(tiny_folder: Path, general: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for n in range(3):
        (tmp_path / "docs" / f"{n}.md").write_text(f"# Lodge {n}\n\nGuests of lodge {n} leave before ten.\n")
    build_index(tmp_path / "docs", tmp_path / "index")
    settings = {"objective": "pretrain", "replay.data": str(general), "replay.share": 0.5, "optim.epochs": 1}
    plan = make_plan(recipe(tiny_folder, **settings), tmp_path / "index", tiny_folder)
    said = "".join(load_tokenizer(tiny_folder).decode(each.labels) for each in plan.schedule)
    assert "Guests of lodge" in said
    assert "thing" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"replay.share": 0.2}, "share = 0.2 of nothing: replay.data names the file"),
        ({"replay.data": "a.jsonl", "replay.share": 1.0}, "replay.share"),
        ({"replay.data": "a.jsonl", "objective": "dpo"}, r"has no use for replay \(only sft and pretrain replay\)"),
        ({"pack_unrelated": False, "objective": "dpo"}, "has no use for pack_unrelated"),
    ],
)
def test_replay_that_cannot_be_is_one_clear_line(settings: dict, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(TrainRecipe, None, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def test_what_only_datasets_have_is_refused_for_instructions(tiny_folder: Path, general: Path) -> None:
    chosen = recipe(tiny_folder, **{"token_weights.quote": 2.0, "watch.samples": 2})
    with pytest.raises(RecipeError, match=r"holds instructions, for which token_weights, watch.samples would do"):
        make_plan(chosen, general, tiny_folder)


def test_dev_rows_are_drawn_from_the_whole_file(tiny_folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "sorted.jsonl", pairs(200, "early") + pairs(200, "late"))
    plan = make_plan(recipe(tiny_folder, **QUICK | {"watch.dev_groups": 6}), data, tiny_folder)
    tokenizer = load_tokenizer(tiny_folder)
    said = [tokenizer.decode(packed.labels) for packed in plan.dev]
    assert len(said) == 6
    assert 0 < sum("early" in reply for reply in said) < 6
