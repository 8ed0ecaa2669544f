"""raft ask and raft serve, on a real index."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import typer

from raft.artifacts import writing
from raft.cli.ask import ask
from raft.cli.serve import listen, serve
from raft.config import load_recipe
from raft.config_serve import ServeRecipe
from raft.errors import ArtifactError, InputError, RecipeError, UsageError
from raft.llm.scripted import ScriptedModel

ROOT = Path(__file__).resolve().parents[2]
QUOTED = (
    "Document [1] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## "
    "It says ##begin_quote##Give 90 mg.##end_quote##\n<ANSWER>: 12 mg"
)
REFUSED = "None of the documents holds the answer.\n<ANSWER>: not in the documents"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("ask")
    source = folder / "documents"
    source.mkdir()
    (source / "corvalexin.md").write_text("# Corvalexin\n\n## Dosing\n\nAdults start with 12 mg by mouth.\n")
    (source / "storage.md").write_text("# Storage\n\nStore between 2 and 8 degrees.\n")
    build_index(source, folder / "index")
    return folder / "index"


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model says: the shipped double stands where a loaded model would."""
    said: list[str] = []
    monkeypatch.setattr("raft.llm.open.open_chat_model", lambda *a, **k: ScriptedModel(lambda request: said[0]))
    return said


@pytest.mark.parametrize(
    ("option", "inside"), [("adapter", ""), ("model", ""), ("model", "model"), ("model", "a.gguf")]
)
def test_what_was_tuned_on_labelled_documents_answers_those_alone_who_hold_the_label(
    option: str, inside: str, index: Path, replies: list[str], tmp_path: Path
) -> None:
    with writing(tmp_path / "run", "adapter", {}, {}) as draft:
        draft.facts["labels"] = ["staff"]
    replies.append(QUOTED)
    path = tmp_path / "run" / inside
    named = {option: path if option == "adapter" else str(path)}
    with pytest.raises(UsageError, match="was tuned on documents that need the access label staff"):
        ask("What dose?", index=index, **named)
    ask("What dose?", index=index, labels=["staff"], **named)


def test_ask_prints_answer_quotes_and_sources(index: Path, replies: list[str], capsys: pytest.CaptureFixture) -> None:
    replies.append(QUOTED)
    ask("What dose of Corvalexin do adults start with?", index=index)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "12 mg"
    quote = lines.index("“Adults start with 12 mg by mouth.”")
    assert lines[quote + 1] == "[1] Corvalexin, Dosing"
    assert not any("90 mg" in line for line in lines)
    assert "Left out: 1 quote(s) that the documents do not hold word for word." in lines
    assert lines[lines.index("Sources") + 1] == "[1] Corvalexin, Dosing (corvalexin.md)"


def test_ask_says_when_the_documents_do_not_hold_the_answer(
    index: Path, replies: list[str], capsys: pytest.CaptureFixture
) -> None:
    replies.append(REFUSED)
    ask("Who owns the moon?", index=index, top_k=1)
    out = capsys.readouterr().out
    assert out.startswith("The documents do not hold the answer.\n\nSearched\n  [1] ")
    assert "[2]" not in out


def test_ask_prints_no_control_characters(index: Path, replies: list[str], capsys: pytest.CaptureFixture) -> None:
    replies.append("##begin_quote##between 2 and 8 degrees##end_quote##\n<ANSWER>: \x1b[2J2 to 8\x07 degrees")
    ask("How is it stored?", index=index)
    out = capsys.readouterr().out
    assert "2 to 8  degrees" in out
    assert "“between 2 and 8 degrees”" in out
    assert not any(char in out for char in "\x1b\x07")


def test_ask_json_is_the_raft_object(index: Path, replies: list[str], capsys: pytest.CaptureFixture) -> None:
    replies.append(QUOTED)
    ask("What dose of Corvalexin do adults start with?", index=index, to_json=True)
    raft = json.loads(capsys.readouterr().out)
    assert (raft["version"], raft["answer"], raft["abstained"]) == (1, "12 mg", False)
    [citation] = raft["citations"]
    document = raft["documents"][citation["rank"] - 1]
    start, end = citation["start"] - document["start"], citation["end"] - document["start"]
    assert document["text"][start:end] == citation["quote"] == "Adults start with 12 mg by mouth."


def test_ask_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--index"):
        ask("Dose?")
    with pytest.raises(UsageError, match="question is empty"):
        ask("  ", index=tmp_path)
    with pytest.raises(ArtifactError, match="raft index"):
        ask("Dose?", index=tmp_path / "none")
    with pytest.raises(RecipeError, match="top_k"):
        ask("Dose?", index=tmp_path, top_k=0)


def test_serve_refuses_a_taken_port_before_it_loads_anything(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            serve(index=tmp_path / "none", port=port)
        assert caught.value.exit_code == 4


def test_serve_refuses_an_open_address_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAFT_API_KEY", raising=False)
    with pytest.raises(UsageError, match="RAFT_API_KEY"):
        serve(index=tmp_path / "none", host="0.0.0.0", port=0)
    monkeypatch.setenv("RAFT_API_KEY", "a short key")
    with pytest.raises(UsageError, match="RAFT_API_KEY has 11 characters"):
        serve(index=tmp_path / "none", host="0.0.0.0", port=0)


def test_serve_takes_the_key_of_a_file_with_a_last_line_and_no_hangup_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def opened(recipe: ServeRecipe, api_key: str | None) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        seen.append(api_key)
        raise ArtifactError("that is all", "")

    monkeypatch.setattr(sys.modules["raft.cli.serve"], "open_app", opened)

    def hung_up(*_: object) -> None:
        pytest.fail("a hangup that nobody minds ends the process")

    before = signal.signal(signal.SIGHUP, hung_up)
    try:
        for given in (f" {'k' * 16}\n", "\n"):
            monkeypatch.setenv("RAFT_API_KEY", given)
            with pytest.raises(ArtifactError):
                serve(index=tmp_path / "none", host="0.0.0.0" if given.strip() else "127.0.0.1", port=0)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == ["k" * 16, None]


def test_listen_refuses_an_address_of_another_machine() -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        listen("192.0.2.1", 0)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """``raft serve`` in a process of its own, and its address once it listens."""
    command = [sys.executable, "-c", "from raft.cli import main; main()", "serve", "--port", "0", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if line.startswith("Serving on "):
                break
        else:
            pytest.fail("raft serve ended: " + "".join(said))
        yield process, line.split()[2]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_stops_cleanly(index: Path, tiny_folder: Path, stop: signal.Signals) -> None:
    arguments = ("--index", str(index), "--model", str(tiny_folder), "--set", "max_new_tokens=4")
    with running(*arguments) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        asked = {"model": "raft", "messages": [{"role": "user", "content": "What dose do adults start with?"}]}
        completion = client.chat.completions.create(**asked)
        assert completion.usage.completion_tokens <= 4
        assert completion.raft["documents"][0]["document_id"] == "corvalexin.md"
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == completion.choices[0].message.content
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted((ROOT / "configs" / "serve").glob("*.toml"))
    assert len(recipes) >= 2
    for path in recipes:
        load_recipe(ServeRecipe, path)


@pytest.mark.parametrize("verb", [ask, serve])
def test_every_option_is_explained(verb: Callable[..., None]) -> None:
    app = typer.Typer()
    app.command()(verb)
    parameters = typer.main.get_command(app).params
    assert len(parameters) >= 7
    assert [parameter.name for parameter in parameters if not parameter.help] == []
