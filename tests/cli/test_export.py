"""raft export from the command line: what it prints, and which options it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from raft.cli import main
from raft.training.llama_engine import is_installed
from raft.training.run import train
from tests.factories import write_dataset
from tests.training.test_run import recipe


@pytest.fixture
def raft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command line: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["raft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def doors(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    train(recipe(tiny_folder, **{"optim.max_steps": 2}), write_dataset(folder / "data"), folder / "doors")
    return folder / "doors"


def test_a_merged_model_is_announced_and_loads(raft, doors: Path, tmp_path: Path) -> None:
    code, out, err = raft("export", doors, "--out", tmp_path / "merged", "--form", "merged")
    assert (code, err) == (0, "")
    first, second, third = out.splitlines()
    assert first.startswith(f"{tmp_path / 'merged'}: merged, 16.4 MB, ")
    assert second.startswith("checked by transformers ")
    assert second.endswith(": 3 of 3 greedy answers as the source's")
    assert third == f"next: raft evaluate --model {tmp_path / 'merged'} --index INDEX --questions FILE"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").num_parameters() > 0
    code, _, err = raft("export", doors, "--out", tmp_path / "merged", "--form", "adapter")
    assert code == 4
    assert "exists already. Name another --out, or replace it with --overwrite" in err
    code, out, _ = raft("export", doors, "--out", tmp_path / "merged", "--form", "adapter", "--overwrite")
    assert code == 0
    assert not (tmp_path / "merged" / "model.safetensors").exists()
    code, out, _ = raft("show", tmp_path / "merged")
    assert out.startswith(f"export {tmp_path / 'merged'}: whole, 4 files, ")


@pytest.mark.skipif(not is_installed(), reason="llama.cpp is not installed (the extra gguf)")
def test_a_gguf_file_as_json(raft, doors: Path, tmp_path: Path) -> None:
    words = ("export", doors, "--out", tmp_path / "g", "--form", "gguf", "--quantization", "q8_0")
    code, out, _ = raft(*words, "--json")
    said = json.loads(out)
    assert code == 0
    assert (said["form"], said["quantization"], said["file"]) == ("gguf", "q8_0", "doors-q8_0.gguf")
    assert said["check"]["perplexity"] == pytest.approx(said["check"]["source_perplexity"], rel=0.01)
    assert (tmp_path / "g" / "doors-q8_0.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--form", "merged", "--quantization", "q8_0"), "--quantization q8_0 says nothing to --form merged"),
        (("--form", "gguf", "--precision", "bfloat16"), "--precision bfloat16 says nothing to --form gguf"),
        (("--form", "merged", "--precision", "float8"), "--precision is 'float8'. Expected one of auto, float32"),
        (("--form", "onnx"), "form is 'onnx'. Expected one of merged, gguf, adapter"),
    ],
)
def test_what_it_would_ignore_is_refused(
    raft, options: tuple[str, ...], said: str, doors: Path, tmp_path: Path
) -> None:
    code, _, err = raft("export", doors, "--out", tmp_path / "out", *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_is_refused(raft, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    code, _, err = raft("export", dataset, "--out", tmp_path / "out", "--form", "merged")
    assert code == 4
    assert "is a dataset, not a adapter. Make one with: raft train" in err
