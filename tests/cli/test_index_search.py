"""raft index and raft search, from the words typed to the words printed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.cli.index import default_index, index
from raft.cli.index_verify import index_verify
from raft.cli.options import Overwrite, Settings, ToJson
from raft.cli.search import search
from raft.config import IndexRecipe, load_recipe
from raft.errors import ArtifactError, CheckFailed, RecipeError, UsageError

ROOT = Path(__file__).parents[2]
app = typer.Typer()
app.command("index")(index)
app.command("verify")(index_verify)
app.command("search")(search)


def run(*words: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "docs").mkdir()
    (folder / "docs" / "lease.md").write_text("# Lease\n\n## Rent\n\nRent is 900 marks a month.", encoding="utf-8")
    (folder / "docs" / "bad.pdf").write_bytes(b"%PDF-")
    out = folder / "index"
    return out, run("index", folder / "docs", "--out", out, "--set", "chunking.max_tokens=32")


def test_index_says_what_it_did_and_what_comes_next(built: tuple[Path, Result]) -> None:
    out, result = built
    assert result.exit_code == 0
    assert "1 documents, 1 chunks" in result.stdout
    assert "  refused  bad.pdf  " in result.stdout
    assert result.stdout.splitlines()[-1] == f'Next: raft search "your question" --index {out}'
    assert "encoding" in result.stderr
    assert "encoding" not in result.stdout


def test_index_again_says_that_nothing_has_changed_or_what_was_encoded(
    built: tuple[Path, Result], tmp_path: Path
) -> None:
    docs, out = tmp_path / "docs", tmp_path / "index"
    shutil.copytree(built[0].parent / "docs", docs)
    assert run("index", docs, "--out", out).exit_code == 0
    assert "up to date: nothing has changed since v1 was made" in run("index", docs, "--out", out).stdout
    (docs / "more.md").write_text("# Pets\n\nNo animals.", encoding="utf-8")
    row = json.loads(run("index", docs, "--out", out, "--json").stdout)
    assert (row["version"], row["changed"], row["documents"], row["parsed"], row["encoded"]) == ("v2", True, 2, 2, 1)


def test_verify_proves_that_a_document_is_gone(built: tuple[Path, Result], tmp_path: Path) -> None:
    said = run("verify", built[0], "--gone", "other.md", "--gone", "lease").stdout
    assert said.startswith(f"{built[0]}: 1 documents, 1 chunks, ")
    for name in ("other.md", "lease"):
        assert f"{name}: the index has no document, file or source of that name\n" in said
    found = json.loads(run("verify", built[0], "--json").stdout)
    assert (found["documents"], found["problems"]) == (1, [])
    with pytest.raises(CheckFailed, match="fails 1 checks"):
        run("verify", built[0], "--gone", "lease.md")
    with pytest.raises(ArtifactError, match="no index at"):
        run("verify", tmp_path / "nowhere")


def test_labels_and_filters_limit_what_a_search_shows(tmp_path: Path) -> None:
    rows = [
        {"id": "open", "text": "The rent is 900 marks.", "date": "2024-03-01", "tags": ["money"]},
        {"id": "secret", "text": "The rent is 800 marks.", "date": "2025-03-01", "labels": ["board"]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run("index", tmp_path / "rows.jsonl", "--out", tmp_path / "i")

    def found(*words: str) -> list[str]:
        lines = run("search", "rent", "--index", tmp_path / "i", "--json", *words).stdout.splitlines()
        return sorted(json.loads(line)["chunk"]["document_id"] for line in lines)

    assert found() == ["open"]
    assert found("--label", "board") == ["open", "secret"]
    assert found("--label", "board", "--since", "2025") == ["secret"]
    assert found("--label", "board", "--until", "2024-12-31") == ["open"]
    assert found("--label", "board", "--tag", "money") == ["open"]
    assert found("--source", "rows") == ["open"]
    assert found("--source", "other") == []


def test_search_shows_scores_and_sources(built: tuple[Path, Result]) -> None:
    result = run("search", "what does it cost", "--index", built[0], "-k", "1")
    assert result.stdout.startswith("1. 0.")
    assert "Lease, Rent  [lease.md]" in result.stdout
    assert "[lease.md]" in result.stdout
    assert "dense" in result.stdout
    assert "900 marks" in result.stdout


def test_search_prints_one_json_object_a_hit(built: tuple[Path, Result]) -> None:
    result = run("search", "900", "--index", built[0], "--mode", "bm25", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["rank"], row["chunk"]["document_id"], list(row["parts"])) for row in rows] == [
        (1, "lease.md", ["bm25"])
    ]
    assert "no chunk" in run("search", "zebra", "--index", built[0], "--mode", "bm25").stdout


def test_index_prints_json(built: tuple[Path, Result], tmp_path: Path) -> None:
    result = run("index", built[0].parent / "docs", "--out", tmp_path / "i", "--json")
    row = json.loads(result.stdout)
    assert (row["documents"], row["chunks"], row["left_out"][0]["source"]) == (1, 1, "bad.pdf")


def test_escape_sequences_of_documents_stay_out_of_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bad\x1b[2J\x9b.mp4").write_bytes(b"x")
    row = {"id": "a\x1b[31m", "title": "Rent\x1b]0;title\x07", "text": "Rent is\x1b[2J 900\x9b marks."}
    (tmp_path / "docs" / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    said = run("index", tmp_path / "docs", "--out", tmp_path / "i").stdout
    assert "  skipped  bad [2J .mp4  " in said
    found = run("search", "rent", "--index", tmp_path / "i", "--mode", "bm25").stdout
    assert "[a [31m]" in found
    assert "Rent is [2J 900  marks." in found
    assert all(char.isprintable() or char == "\n" for char in said + found)


def test_mistakes_are_named(built: tuple[Path, Result], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="source is not set"):
        run("index")
    with pytest.raises(RecipeError, match=r"chunking\.max_token.*did you mean 'max_tokens'"):
        run("index", tmp_path, "--set", "chunking.max_token=9")
    with pytest.raises(ArtifactError, match=r"other settings \(chunking.max_tokens: was 32, now 200\).*--overwrite"):
        run("index", built[0].parent / "docs", "--out", built[0])
    with pytest.raises(UsageError, match="since is 'spring'"):
        run("search", "x", "--index", built[0], "--since", "spring")
    with pytest.raises(UsageError, match="--reranker"):
        run("search", "x", "--index", built[0], "--mode", "reranked")
    with pytest.raises(ArtifactError, match="no index at"):
        run("search", "x", "--index", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="query is empty"):
        run("search", " ", "--index", built[0])
    assert run("search", "x", "--index", built[0], "--mode", "magic").exit_code == 2


def test_index_shares_the_options_of_the_other_verbs() -> None:
    hints = get_type_hints(index, include_extras=True)
    assert (hints["settings"], hints["overwrite"], hints["to_json"]) == (Settings, Overwrite, ToJson)


def test_default_out_is_named_after_the_source(tmp_path: Path) -> None:
    (tmp_path / "legal" / "documents").mkdir(parents=True)
    (tmp_path / "legal" / "corpus.jsonl.gz").write_bytes(b"")
    for source in ("legal", "legal/documents", "legal/corpus.jsonl.gz"):
        assert default_index(tmp_path / source) == Path("indexes/legal")


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted((ROOT / "configs" / "index").glob("*.toml"))
    assert {"cpu", "gpu", "tiny"} <= {path.stem for path in recipes}
    for path in recipes:
        recipe = load_recipe(IndexRecipe, path)
        assert recipe.source is None or (ROOT / recipe.source).is_dir(), path


def test_help_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "faiss", "sentence_transformers", "bm25s", "bs4", "docx", "pypdf", "rich"}
    verbs = "raft.cli.index, raft.cli.index_verify, raft.cli.search"
    code = f"import sys, {verbs}; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
