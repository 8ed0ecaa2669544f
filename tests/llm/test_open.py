"""From settings to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.errors import ModelError, UsageError
from raft.llm.local import LocalModel
from raft.llm.open import open_chat_model
from raft.llm.openvino_network import NotConvertible


def test_an_adapter_for_an_endpoint_is_refused_and_not_ignored() -> None:
    with pytest.raises(UsageError, match=r"adapter runs/a cannot be loaded onto the endpoint http://127.0.0.1:9/v1"):
        open_chat_model("m", base_url="http://127.0.0.1:9/v1", adapter=Path("runs/a"))
    assert open_chat_model("m", base_url="http://127.0.0.1:9/v1").name == "m"


def test_the_engine_is_the_one_that_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("raft.llm.local.LocalModel.load", lambda *_, **__: opened.append("transformers"))
    monkeypatch.setattr("raft.llm.openvino.OpenVinoModel.load", lambda *_, **__: opened.append("openvino"))
    monkeypatch.setattr("raft.llm.openvino.is_installed", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for engine in ("transformers", "openvino", "auto"):
        open_chat_model(str(tiny_folder), engine=engine)
    open_chat_model(str(tiny_folder))
    assert opened == ["transformers", "openvino", "openvino", "transformers"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    open_chat_model(str(tiny_folder), engine="auto")
    assert opened[4:] == ["transformers"]


def test_auto_falls_back_on_transformers_with_a_line(tiny_folder: Path, monkeypatch, capsys) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotConvertible("model x cannot be converted", "Set engine to transformers")

    monkeypatch.setattr("raft.llm.openvino.can_run", lambda model: True)
    monkeypatch.setattr("raft.llm.openvino.OpenVinoModel.load", refuse)
    assert isinstance(open_chat_model(str(tiny_folder), engine="auto"), LocalModel)
    assert capsys.readouterr().err == "raft: model x cannot be converted; transformers takes its place\n"
    with pytest.raises(NotConvertible):
        open_chat_model(str(tiny_folder), engine="openvino")


@pytest.mark.parametrize("is_gguf", [True, False])
def test_auto_takes_transformers_for_a_gguf_file_that_the_engine_cannot_read(
    is_gguf: bool, tiny_folder: Path, monkeypatch, capsys
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModelError("OpenVINO failed (Unsupported GGUF type)", "Set engine to transformers")

    monkeypatch.setattr("raft.llm.openvino.can_run", lambda model: True)
    monkeypatch.setattr("raft.llm.openvino.OpenVinoModel.load", fail)
    monkeypatch.setattr("raft.llm.openvino_network.is_gguf", lambda model: is_gguf)
    if is_gguf:
        assert isinstance(open_chat_model(str(tiny_folder), engine="auto"), LocalModel)
        said = "raft: OpenVINO failed (Unsupported GGUF type); transformers takes its place\n"
        assert capsys.readouterr().err == said
    for engine in ("openvino",) if is_gguf else ("openvino", "auto"):
        with pytest.raises(ModelError, match="Unsupported GGUF type"):
            open_chat_model(str(tiny_folder), engine=engine)
