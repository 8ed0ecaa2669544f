"""raft tune on a real (tiny) model: it finds better settings, stops bad trials, outlives failed ones and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.config_tune import Space, TuneRecipe, settings_of, with_settings
from raft.errors import ArtifactError, InputError, ModelError, RecipeError
from raft.indexing.build import build_index
from raft.places import partial_folder
from raft.rows import read_rows
from raft.training.search import STUDY, SearchSummary, _attempt, _forget_attempt, check_inputs, search
from raft.training.search_report import to_toml
from raft.training.search_study import Tried, importances, next_trial, open_study, settings_of_trial
from tests.factories import write_dataset
from tests.training.small import write_small_encoder, write_small_model

DIVERGES = 1e30  # as weight decay
LR = {"low": 1e-4, "high": 1e-1, "log": True}


def recipe(model: Path, lines: dict[str, Any] | None = None, start: dict[str, Any] | None = None, **more: Any):
    """A search of eight short trainings from a learning rate that is too low."""
    below = {
        "optim.lr": 1e-4, "optim.epochs": 4, "watch.every_steps": 2, "watch.patience": 9, "watch.probe": False,
        "precision": "float32",
    }  # fmt: skip
    train = with_settings(TrainRecipe(model=str(model)), below | (start or {}))
    return TuneRecipe.model_validate({"train": train, "search": lines or {"optim.lr": LR}, "trials": 8} | more)


def table(folder: Path) -> list[dict[str, Any]]:
    """The trials without their seconds, which no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder / "trials.jsonl")]


@pytest.fixture(scope="module")
def tiny_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


SEARCHED = {"optim.lr": LR, "lora.r": {"choices": [4, 8]}, "optim.groups_per_step": {"low": 1, "high": 2}}


@pytest.fixture(scope="module")
def found(tiny_folder: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchSummary:
    """An uninterrupted search over a range, choices and whole numbers."""
    out = tmp_path_factory.mktemp("found") / "search"
    return search(recipe(tiny_folder, SEARCHED, random_trials=3, pruner={"startup_trials": 2}), dataset, out)


def test_eight_trials_find_a_lower_dev_loss_than_the_start(found: SearchSummary, dataset: Path) -> None:
    assert found.trials == 8
    assert found.start_dev_loss is not None
    assert found.best_dev_loss < found.start_dev_loss - 0.2
    rows = table(found.out)
    assert rows[0]["settings"] == {"optim.lr": 1e-4, "lora.r": 16, "optim.groups_per_step": 2}
    assert rows[0]["dev_loss"] == found.start_dev_loss
    assert min(row["dev_loss"] for row in rows if row["state"] == "complete") == found.best_dev_loss
    assert all(1e-4 <= row["settings"]["optim.lr"] <= 1e-1 for row in rows)
    facts = open_artifact(found.out, "tuning").facts
    assert (facts["start_dev_loss"], facts["best_dev_loss"]) == (found.start_dev_loss, found.best_dev_loss)
    assert not partial_folder(found.out).exists()


def test_the_best_model_alone_is_kept_and_is_an_adapter_of_its_own(found: SearchSummary) -> None:
    assert found.model == found.out / "best"
    assert open_artifact(found.model, "adapter").facts["best_dev_loss"] == found.best_dev_loss
    names = {path.name for path in found.out.iterdir()}
    assert names == {"README.md", "best", "best.toml", "history.svg", "manifest.json", "settings.svg", "trials.jsonl"}


def test_the_winning_recipe_can_be_trained_again(found: SearchSummary, dataset: Path, tmp_path: Path) -> None:
    from raft.training.run import train

    again = load_recipe(TrainRecipe, found.out / "best.toml")
    assert again.dataset == dataset
    assert settings_of(again, found.settings) == found.settings
    summary = train(again, dataset, tmp_path / "again")
    assert summary.best_dev_loss == pytest.approx(found.best_dev_loss, abs=1e-6)


def test_the_report_names_the_gain_and_every_trial(found: SearchSummary) -> None:
    text = (found.out / "README.md").read_text()
    assert f"Best dev loss {found.best_dev_loss:.4f} in trial {found.best_trial}" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == 2 + 8


def test_bad_trials_are_stopped_and_leave_nothing(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    seen: list[Tried] = []
    lines = {"optim.lr": {"low": 1e-7, "high": 1e-2, "log": True}}
    chosen = recipe(tiny_folder, lines, {"optim.lr": 1e-2}, sampler="random", pruner={"startup_trials": 1}, trials=4)
    summary = search(chosen, dataset, tmp_path / "search", on_trial=seen.append)
    assert summary.pruned > 0
    assert [trial.number for trial in seen] == list(range(4))
    pruned = [trial for trial in seen if trial.state == "pruned"]
    assert all(trial.steps < 8 for trial in pruned)
    assert all(trial.dev_loss is not None and trial.dev_loss > summary.best_dev_loss for trial in pruned)
    warm = chosen.model_copy(update={"pruner": chosen.pruner.model_copy(update={"warmup_steps": 4}), "trials": 3})
    assert search(warm, dataset, tmp_path / "warm").pruned > 0
    assert all(row["steps"] > 4 for row in table(tmp_path / "warm"))
    off = chosen.model_copy(update={"pruner": chosen.pruner.model_copy(update={"on": False}), "trials": 2})
    assert search(off, dataset, tmp_path / "off").complete == 2


def test_a_trial_that_fails_is_a_row_and_the_search_goes_on(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    lines = {"optim.weight_decay": {"choices": [0.0, DIVERGES]}, "optim.epochs": {"choices": [1, 2]}}
    summary = search(recipe(tiny_folder, lines, sampler="grid", keep="none"), dataset, tmp_path / "search")
    rows = table(tmp_path / "search")
    assert (summary.trials, summary.failed) == (5, 2)  # the start, and a grid of four
    failed = [row for row in rows if row["state"] == "failed"]
    assert {row["settings"]["optim.weight_decay"] for row in failed} == {DIVERGES}
    assert failed[0]["reason"].startswith("the loss is nan at step 2, on q")
    assert failed[0]["dev_loss"] is None
    assert summary.model is None
    assert not (tmp_path / "search" / "best").exists()


def test_values_that_do_not_go_together_are_a_failed_trial(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    start = {"objective": "kto", "preference.batch_size": 4, "optim.max_steps": 1, "watch.every_steps": 1}
    lines = {"preference.batch_size": {"choices": [4, 5]}}
    chosen = recipe(tiny_folder, lines, start | {"preference.pairs_at_once": 2}, sampler="grid", trials=3, keep="none")
    summary = search(chosen, dataset, tmp_path / "search")
    (failed,) = [row for row in table(tmp_path / "search") if row["state"] == "failed"]
    assert failed["settings"] == {"preference.batch_size": 5}
    assert failed["reason"] == "preference.pairs_at_once = 2 does not divide preference.batch_size = 5"
    assert summary.complete == summary.trials - 1


def test_an_encoder_is_searched_for_too(dataset: Path, tmp_path: Path) -> None:
    few = {"negatives": 1, "batch_size": 4, "max_tokens": 16}
    base = str(write_small_encoder(tmp_path))
    start = {"objective": "encoder", "model": base, "retrieval": few, "optim": {"max_steps": 2}}
    lines = {"optim.lr": {"low": 1e-5, "high": 1e-3, "log": True}}
    chosen = TuneRecipe.model_validate({"train": start | {"watch": {"every_steps": 1}}, "search": lines, "trials": 2})
    summary = search(chosen, dataset, tmp_path / "search")
    assert summary.settings["optim.lr"] > 2e-5
    assert open_artifact(tmp_path / "search" / "best", "encoder").facts["best_dev_loss"] == summary.best_dev_loss


def test_a_search_without_any_dev_loss_says_so(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none of 2 trials gave a dev loss; trial 0: the loss is nan"):
        search(recipe(tiny_folder, None, {"optim.weight_decay": DIVERGES}, trials=2), dataset, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_a_dataset_without_a_dev_split_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "doors", dev=False)
    with pytest.raises(InputError, match="has no dev split"):
        search(recipe(tiny_folder), data, tmp_path / "search")


def write_pairs(path: Path, *splits: str) -> Path:
    row = {"documents": ["doors#0"], "chosen": "<ANSWER>: red", "rejected": "<ANSWER>: blue"}
    rows = [row | {"question": f"What colour is door {n}?", "split": split} for n, split in enumerate(splits)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_of_a_file_bring_their_own_dev_rows(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "doors", dev=False)
    start = with_settings(TrainRecipe(objective="dpo", model=str(tiny_folder)), {"preference.batch_size": 1})
    with pytest.raises(InputError, match="doors has no dev split, and what is searched is the lowest dev loss"):
        check_inputs(start, data)
    own = with_settings(start, {"preference.pairs": write_pairs(tmp_path / "pairs.jsonl", "train", "dev")})
    assert set(check_inputs(own, data)) == {"dataset", "pairs", "model"}
    none = with_settings(start, {"preference.pairs": write_pairs(tmp_path / "none.jsonl", "train", "train")})
    with pytest.raises(
        InputError, match=r'none.jsonl holds nothing for dev .* Mark some of its rows with "split": "dev"'
    ):
        check_inputs(none, data)


def test_a_corpus_that_leaves_nothing_for_dev_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "note.md").write_text("# Note\n\nThe roof leaks.\n", encoding="utf-8")
    build_index(tmp_path / "one", tmp_path / "index")
    start = TrainRecipe(objective="pretrain", model=str(tiny_folder))
    with pytest.raises(InputError, match=r"index holds nothing for dev .* An index of two documents or more keeps one"):
        search(TuneRecipe(train=start, search={"optim.lr": LR}), tmp_path / "index", tmp_path / "search")


def test_where_methods_are_searched_each_trial_has_the_settings_of_its_own(tiny_folder: Path, tmp_path: Path) -> None:
    lines = {"method": {"choices": ["lora", "ia3"]}, "lora.r": {"choices": [4, 8]}}
    chosen = recipe(tiny_folder, lines, {"lora.alpha": 8}, sampler="grid", trials=9)
    ia3 = with_settings(chosen.train, {"method": "ia3", "lora.r": 8})
    assert (ia3.method, ia3.lora.r, ia3.lora.alpha) == ("ia3", 16, 32)
    study, tried = open_study(tmp_path / STUDY, chosen), []
    while (trial := next_trial(study, chosen)) is not None:
        tried.append(settings_of_trial(trial, chosen))
        study.tell(trial, trial.number)
    assert sorted(read["method"] for read in tried) == ["ia3", "lora", "lora", "lora"]  # r says nothing to ia3
    with pytest.raises(ValueError, match=r"lora\.r.*\n.*objective sft by method ia3 has no use for it"):
        recipe(tiny_folder, {"lora.r": {"choices": [4, 8]}}, {"method": "ia3"})


def test_without_optuna_it_says_what_to_install(
    tiny_folder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raft.training.search_study.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs Optuna, which is not installed. pip install 'raft-tune\[tune\]'"):
        search(recipe(tiny_folder), dataset, tmp_path / "search")


KILLED_TWICE = """
import os, signal, sys
from pathlib import Path
from tests.training.test_search import recipe
import raft.training.search as search
import raft.training.trainer
search._Watch.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
for resume in (False, True):
    child = os.fork()
    if not child:
        search.search(recipe(Path(sys.argv[1]), trials=2), Path(sys.argv[2]), Path(sys.argv[3]), resume=resume)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_a_trial_that_ends_its_process_each_time_is_given_up(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    out, env = tmp_path / "search", os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", KILLED_TWICE, str(tiny_folder), str(dataset), str(out)], env=env, check=True)
    summary = search(recipe(tiny_folder, trials=2), dataset, out, resume=True)
    first, *others = table(out)
    assert (first["state"], first["dev_loss"], first["steps"]) == ("failed", None, 0)
    assert first["reason"].startswith("its process was ended 2 times at the same place without a word")
    assert {row["state"] for row in others} == {"complete"}
    assert (summary.trials, summary.failed) == (2, 1)


def test_attempts_count_only_where_a_trial_gets_no_further_and_says_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    chosen, out = recipe(tiny_folder), tmp_path / "trials" / "0"
    study = open_study(tmp_path / STUDY, chosen)

    def attempt() -> int:
        trial = next_trial(study, chosen)
        assert trial is not None
        return _attempt(trial, out)

    assert [attempt(), attempt()] == [1, 2]
    checkpoint = partial_folder(out) / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    assert [attempt(), attempt()] == [1, 2]
    trial = next_trial(study, chosen)
    assert trial is not None
    _forget_attempt(trial)
    assert attempt() == 1


SEARCH = """
import sys
from pathlib import Path
from tests.training.test_search import four_trials
from raft.training.search import search
model, dataset, out = map(Path, sys.argv[1:4])
search(four_trials(model), dataset, out, resume="--resume" in sys.argv)
"""


def four_trials(model: Path) -> TuneRecipe:
    start = {"optim.epochs": 5, "watch.every_steps": 4, "lora.dropout": 0.1}
    return recipe(model, SEARCHED, start, random_trials=2, pruner={"startup_trials": 2}, trials=4)


def run_search(model: Path, dataset: Path, out: Path, *more: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", SEARCH, str(model), str(dataset), str(out), *more], env=env)


def kill_when(running: subprocess.Popen, reached: Any) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_kill_9_and_resume_give_the_table_of_an_uninterrupted_search(
    tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    search(four_trials(tiny_folder), dataset, tmp_path / "whole")
    out, trials = tmp_path / "killed", partial_folder(tmp_path / "killed") / "trials"
    checkpoint = trials / "1.partial" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    kill_when(run_search(tiny_folder, dataset, out), checkpoint.exists)
    assert not out.exists()
    study = partial_folder(out) / STUDY
    study.write_bytes(study.read_bytes() + b'{"op_code":7,"worker')  # a line cut short
    (study.parent / f"{STUDY}.lock").symlink_to(study)  # held by the process that was killed
    kill_when(run_search(tiny_folder, dataset, out, "--resume"), (trials / "3.partial").exists)
    search(four_trials(tiny_folder), dataset, out, resume=True)
    assert table(out) == table(tmp_path / "whole")
    assert (out / "best.toml").read_text() == (tmp_path / "whole" / "best.toml").read_text()
    files = [open_artifact(folder / "best", "adapter").files for folder in (out, tmp_path / "whole")]
    assert len({hashed["adapter/adapter_model.safetensors"] for hashed in files}) == 1
    assert not [name for name in open_artifact(out, "tuning").files if "checkpoint" in name]


def test_interrupted_between_trials_it_resumes_with_more_of_them_and_with_nothing_else(
    tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    def stop(trial: Tried) -> None:
        if trial.number == 1:
            raise KeyboardInterrupt

    short = recipe(tiny_folder, trials=2)
    with pytest.raises(KeyboardInterrupt):
        search(short, dataset, tmp_path / "search", on_trial=stop)
    with pytest.raises(ArtifactError, match="Go on with --resume"):
        search(short, dataset, tmp_path / "search")
    with pytest.raises(ArtifactError, match=r"recipe.seed: was 0, now 1"):
        search(recipe(tiny_folder, trials=2, seed=1), dataset, tmp_path / "search", resume=True)
    partial = partial_folder(tmp_path / "search")
    (partial / "trials" / "1").rename(partial / "best")  # as in a search that is stopped in its last step
    new: list[Tried] = []
    summary = search(recipe(tiny_folder, trials=3), dataset, tmp_path / "search", resume=True, on_trial=new.append)
    assert [trial.number for trial in new] == [2]
    assert (summary.trials, summary.best_trial) == (3, 1)
    assert open_artifact(tmp_path / "search" / "best", "adapter").facts["best_dev_loss"] == summary.best_dev_loss


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_what_is_proposed_follows_from_the_seed_and_the_outcomes_alone(
    sampler: str, tiny_folder: Path, tmp_path: Path
) -> None:
    lines = {
        "optim.lr": {"low": 0.01, "high": 0.05, "step": 0.01},
        "lora.target_modules": {"choices": ["all-linear", ["q_proj", "v_proj"]]},
    }
    chosen = recipe(tiny_folder, lines, sampler=sampler, trials=40, random_trials=2)

    def propose(folder: Path, reopen: bool) -> list[dict[str, Any]]:
        folder.mkdir()
        study, settings = open_study(folder / STUDY, chosen), []
        while (trial := next_trial(study, chosen)) is not None:
            if reopen:  # a trial that was begun comes back with the values it had
                study = open_study(folder / STUDY, chosen)
                trial = next_trial(study, chosen)
            study.tell(trial, trial.number % 3)
            settings.append(trial.params)
        return settings

    one = propose(tmp_path / "one", reopen=False)
    assert one == propose(tmp_path / "two", reopen=True)
    assert len(one) == len({json.dumps(params, sort_keys=True) for params in one}) == 11  # the start, ten in the space


def test_importances_are_given_when_there_are_enough_trials(tiny_folder: Path, tmp_path: Path) -> None:
    lines = {"optim.lr": LR, "optim.weight_decay": {"low": 0.0, "high": 1.0}}
    chosen = recipe(tiny_folder, lines, sampler="random", trials=40)
    study = open_study(tmp_path / STUDY, chosen)
    assert importances(study, chosen) == {}
    while (trial := next_trial(study, chosen)) is not None:
        study.tell(trial, abs(trial.params["optim.lr"] - 0.01))
    shares = importances(study, chosen)
    assert next(iter(shares)) == "optim.lr"
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('"optim.lrr" = { low = 1, high = 2 }', "is no setting of raft train (did you mean 'optim.lr'?)"),
        ('"optim.lr" = { low = 1e-2, high = 1e-5 }', "is an empty range; low = 0.01 must be below high = 1e-05"),
        ('"optim.lr" = { low = 0.0, high = 0.1, log = true }', "has log = true, which needs low above 0; it is 0.0"),
        ('"optim.lr" = { low = 0.1, high = 5.0 }', "cannot be 5.0: Input should be less than or equal to 1"),
        ('"optim.lr" = { low = 0.1 }', "is no range; give low and high, or choices"),
        ('"optim.lr" = { low = 0.1, high = 0.2, step = 0.5 }', "has step = 0.5; it must be above 0 and at most 0.1"),
        ('"lora.r" = { low = 1.5, high = 8 }', "cannot be 1.5: Input should be a valid integer"),
        ('"lora.r" = { low = 4, high = 8, choices = [4, 8] }', "has a range and choices; give one of them"),
        ('"lora.r" = { choices = [4, "many"] }', "cannot be 'many': Input should be a valid integer"),
        ('"lora.r" = { choices = [4] }', "has fewer than two choices"),
        ('"lora.r" = { choices = [4, 4] }', "has the same choice twice"),
        ('method = { choices = ["lora", "magic"] }', "cannot be 'magic': Input should be 'lora'"),
        ('share_prefixes = { low = 0, high = 1 }', "not a number: give choices"),
        ('max_tokens = { choices = [512, 1024] }', "cannot be searched: it decides which dev examples fit"),
        ('"preference.beta" = { low = 0.1, high = 0.2 }', "cannot be searched: it decides what the dev loss is"),
        ('documents = { choices = [true, false] }', "cannot be searched: without them a dev question is another one"),
        ('"watch.probe" = { choices = [true, false] }', "cannot be searched: trials are not probed"),
        ('"watch.samples" = { low = 0, high = 4 }', "cannot be searched: it changes nothing that is learned"),
        ('"watch.trackers" = { choices = [[], ["tensorboard"]] }', "cannot be searched: they change nothing"),
    ],
)  # fmt: skip
def test_bad_search_spaces_are_refused_with_one_line_each(lines: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tune.toml"
    path.write_text(f'[search]\n{lines}\n"optim.epoch" = {{ low = 1, high = 2 }}\n')
    with pytest.raises(RecipeError) as refused:
        load_recipe(TuneRecipe, path, ["sampler=annealing"])
    text = str(refused.value)
    assert text.startswith(f"{path}: 3 mistakes: search.")
    assert "; sampler = 'annealing': Input should be 'tpe', 'random' or 'grid'" in text
    assert says in text
    assert (
        "search.optim.epoch = {'low': 1, 'high': 2}: is no setting of raft train (did you mean 'optim.epochs'?)" in text
    )
    assert "\n" not in text


def test_a_grid_needs_an_end_of_its_values() -> None:
    endless = ["sampler=grid", "search.optim.lr={low=1e-5, high=1e-2}", "search.lora.r={low=4, high=16, step=4}"]
    with pytest.raises(RecipeError, match=r"sampler grid needs a step or choices for optim\.lr"):
        load_recipe(TuneRecipe, None, endless)
    with pytest.raises(RecipeError, match="nothing is searched"):
        load_recipe(TuneRecipe, None, [])


def test_the_start_is_a_file_and_what_is_said_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text('model = "m"\n[optim]\nlr = 0.5\nepochs = 7\n')
    (tmp_path / "tune.toml").write_text(
        f'[train]\nrecipe = "{tmp_path / "train.toml"}"\noptim.lr = 0.25\n'
        '[search]\n"optim.lr" = { low = 0.1, high = 0.2 }\noptim.epochs = { low = 1, high = 3 }\n'
    )
    chosen = load_recipe(TuneRecipe, tmp_path / "tune.toml", ["search.optim.lr.high=0.3", "train.lora.r=4"])
    assert (chosen.train.model, chosen.train.optim.lr, chosen.train.optim.epochs, chosen.train.lora.r) == (
        "m",
        0.25,
        7,
        4,
    )
    assert chosen.search["optim.lr"] == Space(low=0.1, high=0.3)
    assert chosen.search["optim.epochs"].low == 1.0
    assert isinstance(chosen.search["optim.epochs"].low, float)  # epochs is, so that it is drawn between 1 and 3
    with pytest.raises(RecipeError, match=r'train = .*: must be a table: write \[train\] and in it recipe = "x.toml"'):
        load_recipe(TuneRecipe, None, ["train=x.toml"])


def test_a_recipe_written_as_toml_reads_back(tmp_path: Path) -> None:
    odd = {"model": 'a "quoted" – name\\', "optim.lr": 1e-5, "lora.target_modules": ("q_proj", "v_proj")}
    whole = with_settings(TrainRecipe(), odd | {"optim.max_steps": 3, "gradient_checkpointing": True})
    (tmp_path / "train.toml").write_text(to_toml(whole), encoding="utf-8")
    assert load_recipe(TrainRecipe, tmp_path / "train.toml") == whole
