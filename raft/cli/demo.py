"""raft demo: the whole way on a sample corpus, each step the command a user would type."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import raft
from raft.artifacts import MANIFEST, home
from raft.cli.options import printable
from raft.errors import InputError, UsageError

CHECKOUT = Path(raft.__file__).resolve().parent.parent


def demo(
    corpus: Annotated[str, typer.Option(help="sample corpus: medical or legal")] = "medical",
    quick: Annotated[bool, typer.Option("--quick", help="minutes become seconds; the student learns little")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="keep what an earlier demo finished")] = False,
) -> None:
    """Index, generate, train and evaluate on a sample corpus with small models that need no network."""
    began = time.monotonic()
    source = _relative(_corpus_folder(corpus))
    folder = home() / "demo" / (f"{corpus}-quick" if quick else corpus)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    for artefact, words in _commands(source, folder, "tiny" if quick else "cpu").items():
        if (folder / artefact / MANIFEST).exists():
            typer.echo(f"\n{folder / artefact} is there already")
            continue
        _run([*words, "--resume"] if resume and artefact != "index" else words)
    typer.echo(_side_by_side(folder / "report" / "report.json"))
    typer.echo(_next_steps(folder, time.monotonic() - began))


def _corpus_folder(corpus: str) -> Path:
    corpora = CHECKOUT / "corpora"
    if not corpora.is_dir():
        raise InputError("the sample corpora are not part of the installed package", "Run raft demo in a checkout")
    known = sorted(path.name for path in corpora.iterdir() if (path / "questions.jsonl").exists())
    if corpus not in known:
        raise UsageError(f"no sample corpus {corpus!r}", f"Choose one of: {', '.join(known)}")
    return corpora / corpus


def _relative(path: Path) -> Path:
    """The path as a user here would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _commands(source: Path, folder: Path, recipe: str) -> dict[str, list[str]]:
    """Artefact -> the words of the command that makes it."""

    def config(verb: str) -> str:
        return str(_relative(CHECKOUT / "configs" / verb / f"{recipe}.toml"))

    index, dataset, adapter, report = (str(folder / name) for name in ("index", "dataset", "adapter", "report"))
    questions = str(source / "questions.jsonl")
    return {
        "index": ["index", str(source / "documents"), "--recipe", config("index"), "--out", index],
        "dataset": ["generate", config("generate"), "--index", index, "--from-qa", questions, "--out", dataset],
        "adapter": ["train", config("train"), "--data", dataset, "--out", adapter],
        "report": [
            "evaluate", config("evaluate"), "--index", index, "--questions", questions, "--adapter", adapter,
            "--out", report,
        ],
    }  # fmt: skip


def _run(words: list[str]) -> None:
    from raft.cli import app

    typer.echo(f"\n$ raft {shlex.join(words)}")
    app(words, standalone_mode=False)


def _side_by_side(report: Path) -> str:
    """A question of the report that the tuned model answers better than base RAG, or else the first one."""
    data = json.loads(report.read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}
    for row in data["results"]:
        rows.setdefault(row["question_id"], {})[row["system"]] = row
    answered = {key: row for key, row in rows.items() if {"rag", "raft"} <= row.keys()}
    best = max(answered, key=lambda key: answered[key]["raft"]["f1"] - answered[key]["rag"]["f1"])
    question = next(q for q in data["questions"] if q["id"] == best)
    pair = answered[best]
    return (
        f"\nquestion   {_indent(question['question'])}"
        f"\nreference  {_indent(question['answer'] or '(not in the documents)')}"
        f"\n\nbase RAG   {_indent(pair['rag']['text'])}\n\nRAFT       {_indent(pair['raft']['text'])}"
    )


def _indent(text: str) -> str:
    return "\n           ".join(printable(line) for line in text.strip().splitlines()) or "(nothing)"


def _next_steps(folder: Path, seconds: float) -> str:
    where = f"--index {folder / 'index'} --adapter {folder / 'adapter'}"
    return (
        f"\nThe whole way took {seconds / 60:.1f} minutes. The report: {folder / 'report' / 'report.html'}\n"
        f'Ask yourself:   raft ask "your question" {where}\nServe it:       raft serve {where}\n'
        f"Your documents: raft index FOLDER --out indexes/mine, then the commands above with --index indexes/mine"
    )
