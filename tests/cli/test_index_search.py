"""raft index and raft search, from the words typed to the words printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.cli.index import default_index, index
from raft.cli.options import Overwrite, Settings, ToJson
from raft.cli.search import search
from raft.config import IndexRecipe, load_recipe
from raft.errors import ArtifactError, RecipeError, UsageError

ROOT = Path(__file__).parents[2]
app = typer.Typer()
app.command("index")(index)
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
    assert "refused bad.pdf: " in result.stdout
    assert result.stdout.splitlines()[-1] == f'Next: raft search "your question" --index {out}'
    assert "encoding" in result.stderr
    assert "encoding" not in result.stdout


def test_search_shows_scores_and_sources(built: tuple[Path, Result]) -> None:
    result = run("search", "what does it cost", "--index", built[0], "-k", "1")
    assert result.stdout.startswith("1. 0.")
    assert "Lease > Rent" in result.stdout
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
    assert "skipped bad [2J .mp4: " in said
    found = run("search", "rent", "--index", tmp_path / "i", "--mode", "bm25").stdout
    assert "[a [31m]" in found
    assert "Rent is [2J 900  marks." in found
    assert all(char.isprintable() or char == "\n" for char in said + found)


def test_mistakes_are_named(built: tuple[Path, Result], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="source is not set"):
        run("index")
    with pytest.raises(RecipeError, match=r"chunking\.max_token.*did you mean 'max_tokens'"):
        run("index", tmp_path, "--set", "chunking.max_token=9")
    with pytest.raises(ArtifactError, match="exists already"):
        run("index", built[0].parent / "docs", "--out", built[0])
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
    code = f"import sys, raft.cli.index, raft.cli.search; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
