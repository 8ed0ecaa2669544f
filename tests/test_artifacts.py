"""An artefact is whole or it is not there."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from raft import artifacts
from raft.artifacts import MANIFEST, RESUME, open_artifact, read_manifest, writing
from raft.config import EvaluateRecipe
from raft.config_train import TrainRecipe
from raft.errors import ArtifactError, InputError
from raft.evaluation import compare
from raft.places import partial_folder
from raft.training import run
from raft.training.trainer import last_checkpoint
from tests.factories import write_dataset


def make(out: Path, text: str = "one", **options) -> None:
    with writing(out, "index", {"size": 3}, {"corpus": "abc"}, **options) as draft:
        (draft.folder / "deep").mkdir(exist_ok=True)
        (draft.folder / "deep" / "data.txt").write_text(text)
        draft.facts["n"] = 1


def test_a_finished_artefact_opens_with_all_that_made_it(tmp_path: Path) -> None:
    make(tmp_path / "a")
    manifest = open_artifact(tmp_path / "a", "index")
    assert manifest.recipe == {"size": 3}
    assert manifest.inputs == {"corpus": "abc"}
    assert manifest.facts == {"n": 1}
    assert list(manifest.files) == ["deep/data.txt"]
    assert manifest.packages["torch"]
    assert not any("KEY" in word or "HOME" in word for word in json.dumps(manifest.recipe).split())


def test_equal_content_has_equal_fingerprints(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        make(tmp_path / name, text)
    a, b, c = (read_manifest(tmp_path / name, "index").fingerprint for name in "abc")
    assert a == b != c


def test_every_damage_is_detected_at_opening(tmp_path: Path) -> None:
    make(tmp_path / "a", "some words " * 50)
    path = tmp_path / "a" / "deep" / "data.txt"
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        at = rng.randrange(len(whole))
        damaged = rng.choice([whole[:at], whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]])
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="has changed"):
            open_artifact(tmp_path / "a", "index")
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        open_artifact(tmp_path / "a", "index")


def test_a_failure_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a", "index", {}, {}) as draft:
        (draft.folder / "half").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), writing(tmp_path / "a", "index", {}, {}):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_replacing_needs_a_word_and_never_touches_what_is_not_ours(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "a", "two")
    make(tmp_path / "a", "two", overwrite=True)
    assert (tmp_path / "a" / "deep" / "data.txt").read_text() == "two"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artefact"):
        make(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_resuming_needs_the_same_settings_and_inputs(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        writing(tmp_path / "a", "dataset", {"x": {"y": 1}}, {}, resume=False) as draft,
    ):
        (draft.folder / "rows").write_text("kept")
        raise KeyboardInterrupt
    with (
        pytest.raises(ArtifactError, match="unfinished work"),
        writing(tmp_path / "a", "dataset", {"x": {"y": 1}}, {}, resume=False),
    ):
        pass
    with (
        pytest.raises(ArtifactError, match=r"recipe.x.y: was 1, now 2"),
        writing(tmp_path / "a", "dataset", {"x": {"y": 2}}, {}, resume=True),
    ):
        pass
    with writing(tmp_path / "a", "dataset", {"x": {"y": 1}}, {}, resume=True) as draft:
        assert (draft.folder / "rows").read_text() == "kept"
    assert open_artifact(tmp_path / "a", "dataset").kind == "dataset"


def test_what_a_resumed_run_needs_goes_only_when_the_artefact_stands(tmp_path: Path) -> None:
    with writing(tmp_path / "a", "dataset", {}, {}, resume=False) as draft:
        keep_scratch(draft)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [MANIFEST, "rows"]
    assert list(open_artifact(tmp_path / "a", "dataset").files) == ["rows"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def keep_scratch(draft: artifacts.Draft) -> None:
    (draft.folder / "checkpoints" / "deep").mkdir(parents=True, exist_ok=True)
    (draft.folder / "checkpoints" / "deep" / "state").write_text("weeks")
    (draft.folder / "journal").write_text("paid")
    (draft.folder / "rows").write_text("rows")
    draft.scratch += [draft.folder / "journal", draft.folder / "checkpoints"]


@pytest.mark.parametrize("step", ["hash_file", "_write_text", "publish", "Path.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_last_step_that_fails_loses_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = tmp_path / "a"
    owner, name = (Path, "replace") if step == "Path.replace" else (artifacts, step)
    with (
        pytest.raises((KeyboardInterrupt, InputError)) as caught,
        monkeypatch.context() as patched,
        writing(out, "dataset", {}, {}, resume=False) as draft,
    ):
        keep_scratch(draft)
        patched.setattr(owner, name, fail)
    if isinstance(error, OSError):
        assert "--resume" in str(caught.value)
    with pytest.raises(ArtifactError, match="unfinished work"), writing(out, "dataset", {}, {}, resume=False):
        pass
    with writing(out, "dataset", {}, {}, resume=True) as draft:
        assert (draft.folder / "journal").read_text() == "paid"
        assert (draft.folder / "checkpoints" / "deep" / "state").read_text() == "weeks"
        keep_scratch(draft)
    assert list(open_artifact(out, "dataset").files) == ["rows"]
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "rows"]


def test_a_stop_after_publishing_leaves_a_whole_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "_tidy", fail)
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a", "dataset", {}, {}, resume=False) as draft:
        keep_scratch(draft)
    assert list(open_artifact(tmp_path / "a", "dataset").files) == ["rows"]
    assert not partial_folder(tmp_path / "a").exists()


def test_a_training_whose_last_step_fails_goes_on_from_its_last_checkpoint(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    settings = {"precision": "float32", "optim": {"max_steps": 2}, "watch": {"every_steps": 1, "probe": False}}
    recipe = TrainRecipe.model_validate({"model": str(tiny_folder)} | settings)
    dataset, out, steps = write_dataset(tmp_path / "doors"), tmp_path / "tuned", []
    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"No space left.*--resume"):
        patched.setattr(artifacts, "finish", fail)
        run.train(recipe, dataset, out)
    assert last_checkpoint(partial_folder(out) / "checkpoints") is not None
    weights = (partial_folder(out) / "adapter" / "adapter_model.safetensors").read_bytes()
    summary = run.train(recipe, dataset, out, resume=True, on_step=lambda at, of, row: steps.append(row))
    assert (summary.steps, [row for row in steps if "loss" in row]) == (2, [])
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert not any("checkpoint" in name for name in open_artifact(out, "adapter").files)
    assert not (out / "checkpoints").exists()


def test_an_evaluation_may_be_resumed_at_another_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    plan = compare.Plan((), (), {}, (), {"questions": "abc"}, ())
    monkeypatch.setattr(compare, "plan_comparison", lambda *_, **__: plan)
    monkeypatch.setattr(compare, "collect_replies", interrupted)
    speed = {"concurrency": 1, "timeout_seconds": 900.0, "max_retries": 9, "batch_tokens": 512}
    with pytest.raises(KeyboardInterrupt):
        compare.evaluate(EvaluateRecipe(), tmp_path / "report")
    with pytest.raises(KeyboardInterrupt):  # not refused: it came as far as asking again
        compare.evaluate(EvaluateRecipe.model_validate({"model": speed}), tmp_path / "report", resume=True)
    warmer = EvaluateRecipe.model_validate({"model": {"temperature": 0.5}})
    with pytest.raises(ArtifactError, match=r"recipe\.model\.temperature: was 0\.0, now 0\.5"):
        compare.evaluate(warmer, tmp_path / "report", resume=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_work_that_starts_anew_never_wipes_work_that_can_be_resumed(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a", "index", {}, {}, resume=False) as draft:
        (draft.folder / "journal").write_text("paid")
        raise KeyboardInterrupt
    with pytest.raises(ArtifactError, match=r"--resume and the recipe that began it, name another --out, or delete"):
        make(tmp_path / "a", overwrite=overwrite)
    assert (partial_folder(tmp_path / "a") / "journal").read_text() == "paid"


@pytest.mark.parametrize(
    ("made", "kept"),
    [(None, False), ("log.jsonl", False), ("other.txt", False), ("checkpoints/step-1", True)],
)
def test_failed_work_is_kept_where_it_holds_something_worth_keeping(
    tmp_path: Path, made: str | None, kept: bool
) -> None:
    worth = ("checkpoints/step-*", "log.jsonl")
    with (
        pytest.raises(KeyboardInterrupt),
        writing(tmp_path / "a", "adapter", {}, {}, resume=False, worth_keeping=worth) as draft,
    ):
        if made is not None:
            (draft.folder / made).parent.mkdir(exist_ok=True)
            (draft.folder / made).write_text("" if made == "log.jsonl" else "something")
        raise KeyboardInterrupt
    assert partial_folder(tmp_path / "a").exists() is kept


@pytest.mark.parametrize("resume", [None, False])
def test_what_cannot_be_resumed_gives_way(tmp_path: Path, resume: bool | None) -> None:
    killed = partial_folder(tmp_path / "a")  # as kill -9 leaves it
    with pytest.raises(RuntimeError), writing(tmp_path / "a", "index", {}, {}) as draft:
        marker = (draft.folder / RESUME).read_text()
        raise RuntimeError
    killed.mkdir()
    (killed / RESUME).write_text(marker)
    (killed / "half").write_text("half")
    make(tmp_path / "a", resume=resume)
    assert list(open_artifact(tmp_path / "a", "index").files) == ["deep/data.txt"]


def test_the_parts_of_a_recipe_that_may_change_are_those_of_the_last_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a", "dataset", {"x": 1, "y": 1}, {}, resume=False):
        raise KeyboardInterrupt
    changed = {"x": 2, "y": 2}
    with (
        pytest.raises(ArtifactError, match=r": recipe.x: was 1, now 2\. "),
        writing(tmp_path / "a", "dataset", changed, {}, resume=True, may_change=("y",)),
    ):
        pass
    with writing(tmp_path / "a", "dataset", changed, {}, resume=True, may_change=("x", "y")):
        pass
    assert read_manifest(tmp_path / "a", "dataset").recipe == changed


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "not a finished"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "is damaged"),
        (lambda folder: (folder / MANIFEST).write_text('{"kind": "index"}'), "is damaged"),
        (lambda folder: None, "is a index, not a adapter"),
    ],
)
def test_a_folder_that_is_not_the_artefact_asked_for_is_refused(tmp_path: Path, spoil, says: str) -> None:
    make(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(ArtifactError, match=says):
        open_artifact(tmp_path / "a", "adapter" if "adapter" in says else "index")


def test_a_missing_artefact_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="raft train"):
        open_artifact(tmp_path / "nowhere", "adapter")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_files_and_the_folders_that_name_them_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    make(tmp_path / "a")
    partial = partial_folder(tmp_path / "a")
    expected = {partial / "deep" / "data.txt", partial / "deep", partial, tmp_path}
    assert {str(path) for path in expected} <= set(synced)


def test_what_lies_beside_is_left_alone(tmp_path: Path) -> None:
    """A folder that somebody has put aside, and one that happens to bear the name of unfinished work."""
    (tmp_path / "a.old").mkdir()
    make(tmp_path / "a")
    make(tmp_path / "a", "two", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.old"]
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not unfinished work of raft"):
        make(tmp_path / "b", overwrite=True)
    assert (tmp_path / "b.partial" / "thesis.txt").read_text() == "mine"


def test_another_kind_of_artefact_is_never_replaced(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with (
        pytest.raises(ArtifactError, match=r"another artefact \('index'\)"),
        writing(tmp_path / "a", "report", {}, {}, overwrite=True),
    ):
        pass
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / RESUME).write_text('{"kind": "index", "resumable": true}')
    with (
        pytest.raises(ArtifactError, match=r"of another kind \('index'\)"),
        writing(tmp_path / "b", "report", {}, {}, resume=True),
    ):
        pass
