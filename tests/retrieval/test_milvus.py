"""An index in Milvus gives the hits of the local one, shows nobody more, and keeps nothing of what is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="needs raft-tune[milvus]")
pytest.importorskip("milvus_lite", reason="needs raft-tune[milvus]")

from raft.cli import app
from raft.config import ChunkingRecipe, EncoderRecipe, ReadingRecipe
from raft.errors import ArtifactError, EndpointError, InputError, UsageError
from raft.indexing.build import build_index
from raft.indexing.push import push_index
from raft.records import Filter, Hit
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import EVERYTHING, Index, open_index
from raft.retrieval.milvus import MilvusRetriever, expression_of, open_retriever
from raft.retrieval.milvus_rows import Collections, days_of

DOCUMENTS = Path(__file__).parents[2] / "corpora" / "medical" / "documents"
READING, ENCODER = ReadingRecipe(workers=1), EncoderRecipe(backend="torch")
QUERIES = [
    "What is the first dose of Corvalexin in adults?",
    "how often is potassium checked",
    "sepsis lactate 2 mmol/L",
    "who signs the discharge letter",
    "the the of",
    "zzzqqq",
]
ODD = "wards/50%_\"a\\' or 1==1 --\u00e4"
LABELS = ("icu", "board", 'x"] or labels != "')


def rows() -> list[dict[str, object]]:
    """The corpus with labels, tags, dates and sources of every kind, by turns."""
    found: list[dict[str, object]] = []
    for at, path in enumerate(sorted(DOCUMENTS.rglob("*.md"))[:12]):
        labels = [label for bit, label in enumerate(LABELS) if at < 8 and at >> bit & 1]
        date = (None, "2024", "2024-06", "2024-06-15", "2025-01-01")[at % 5]
        found.append(
            {
                "id": f"d{at}",
                "text": path.read_text(encoding="utf-8"),
                "title": path.stem,
                "source": (ODD if at % 3 == 0 else "wards/50x") + f"/{at}.md",
                "tags": [["a"], ["b", 'b"] or'], []][at % 3],
                "labels": labels,
                **({"date": date} if date else {}),
            }
        )
    return found


def write(folder: Path, corpus: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)) + "\n", encoding="utf-8")
    return folder


def built(source: Path, out: Path) -> Path:
    chunking = ChunkingRecipe(max_tokens=120, overlap_tokens=8)
    return build_index(source, out, reading=READING, chunking=chunking, encoder=ENCODER).path


@pytest.fixture(scope="module", autouse=True)
def one_encoder() -> Iterator[None]:
    """Loads each encoder once, and encodes each query once: the tests are about what is done with the vectors."""
    load, encode = Encoder.load, Encoder.encode_queries
    loaded: dict[str, Encoder] = {}
    known: dict[tuple[int, str], np.ndarray] = {}

    def once(**settings: Any) -> Encoder:
        name = repr(sorted(settings.items()))
        if name not in loaded:
            loaded[name] = load(**settings)
        return loaded[name]

    def query(self: Encoder, queries: Sequence[str]) -> np.ndarray:
        for text in queries:
            if (id(self), text) not in known:
                known[id(self), text] = encode(self, [text])[0]
        return np.stack([known[id(self), text] for text in queries])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "load", once)
        patch.setattr(Encoder, "encode_queries", query)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("milvus") / "source"
    return write(folder, rows())


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    return built(source, source.parent / "index")


@pytest.fixture(scope="module")
def uri(folder: Path) -> Iterator[str]:
    file = str(folder.parent / "medical.db")
    summary = push_index(folder, file, "medical")
    assert (summary.inserted, summary.deleted, summary.kept, summary.anew) == (summary.chunks, 0, 0, True)
    yield file
    release(file)


def release(file: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(file)


def same(there: list[list[Hit]], here: list[list[Hit]], tolerance: float = 1e-5) -> None:
    """Equal hits with equal scores, in equal order but for ties."""
    assert len(there) == len(here)
    for found, wanted in zip(there, here, strict=True):
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=tolerance)
        last = wanted[-1].score if wanted else 0.0
        assert {hit.chunk for hit in found if hit.score > last + tolerance} == {
            hit.chunk for hit in wanted if hit.score > last + tolerance
        }
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
        parts = {hit.chunk.id: hit.parts for hit in wanted}
        assert all(dict(hit.parts) == pytest.approx(parts[hit.chunk.id], abs=tolerance) for hit in found
                   if hit.chunk.id in parts)  # fmt: skip


@pytest.mark.parametrize("mode", ["dense", "bm25", "fused"])
@pytest.mark.parametrize("labels", [(), ("icu",), LABELS])
def test_hits_and_scores_are_those_of_the_local_index(folder: Path, uri: str, mode: str, labels: tuple[str]) -> None:
    here, there = open_index(folder, labels=labels), MilvusRetriever.open(uri, "medical", labels)
    assert there.fingerprint == here.fingerprint
    for where in (
        EVERYTHING,
        Filter(labels=frozenset({"icu", "unknown"})),
        Filter(sources=(ODD,)),
        Filter(sources=("wards/50%", "wards/50_"), tags=("a", 'b"] or')),
        Filter(tags=('b"] or', "nobody's")),
        Filter(since="2024-06-15"),
        Filter(until="2024-06"),
        Filter(since="2024", until="2024-12-31", tags=("a",)),
        Filter(since="2030"),
    ):
        same(there.search(QUERIES, 10, mode, where), here.search(QUERIES, 10, mode, where))  # type: ignore[arg-type]


def test_labels_are_all_needed_and_always_checked(folder: Path, uri: str) -> None:
    facets = {f"d{at}": set(row["labels"]) for at, row in enumerate(rows())}  # type: ignore[call-overload]
    for held in ((), ("icu",), ("icu", "board"), LABELS):
        seen = MilvusRetriever.open(uri, "medical", held).search(["dose"], 500, "dense")[0]
        documents = {hit.chunk.document_id for hit in seen}
        assert documents == {name for name, needed in facets.items() if needed <= set(held)}
    assert expression_of(Filter(labels=frozenset()), [("icu",)]) is None
    assert "labels in" in str(expression_of(Filter(labels=frozenset({"icu"})), [("icu",)]))


def test_no_name_can_break_out_of_the_expression() -> None:
    odd = ('"', "'", "\\", "%", "_", '"] or key != "', "{x}", "\n", "\udc80")
    where = Filter(labels=frozenset(odd), sources=odd, tags=odd, since="2024", until="2025-02")
    expression = expression_of(where, [(), odd])
    assert expression is not None
    quoted = expression.split('"')[1::2]
    assert all(set(value.rstrip("%")) <= set("0123456789abcdef") for value in quoted)
    for date in ('2024" or', "2024-13", ""):
        with pytest.raises(UsageError, match="since is"):
            expression_of(Filter(labels=frozenset(), since=date), [()])


def test_dates_compare_as_exactly_as_both_are_given() -> None:
    dates = ["2024", "2023-12", "2024-06", "2024-06-15", "2024-07-01", "2025"]
    for date in dates:
        for other in dates:
            width = min(len(date), len(other))
            assert (date[:width] <= other[:width]) == (days_of(date)[0] <= days_of(other)[1])


def test_a_push_sends_what_changed_and_leaves_nothing_of_what_is_gone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milvus_lite.server_manager import server_manager_instance

    corpus = rows()
    corpus[0]["text"] = "# Erased\n\nThe quokka protocol of ward nine."
    index, file = built(write(tmp_path / "source", corpus), tmp_path / "index"), str(tmp_path / "x.db")
    cluster = server_manager_instance.start_and_get_uri(file)
    assert cluster is not None  # the same server by its address is to raft a cluster: rows are deleted one by one
    push_index(index, cluster, "medical")
    again = push_index(index, cluster, "medical")
    assert (again.inserted, again.deleted, again.kept) == (0, 0, again.chunks)

    corpus[8]["labels"] = ["board"]  # nobody needed a label for it before
    write(tmp_path / "source", corpus[1:])
    built(tmp_path / "source", index)
    monkeypatch.setattr("raft.indexing.push._MEAN_DRIFT", 0.5)
    summary = push_index(index, cluster, "medical")
    assert 0 < summary.inserted < summary.deleted < summary.chunks
    assert not summary.anew
    there = MilvusRetriever.open(cluster, "medical")
    assert not any("quokka" in hit.chunk.text for hit in there.search(["the quokka protocol"], 500, "dense")[0])
    assert not any(hit.chunk.document_id == "d8" for hit in there.search(QUERIES[:1], 500, "dense")[0])
    same(there.search(QUERIES, 10, "dense"), open_index(index).search(QUERIES, 10, "dense"))
    rough = zip(there.search(QUERIES, 10, "bm25"), open_index(index).search(QUERIES, 10, "bm25"), strict=True)
    for (
        found,
        wanted,
    ) in rough:  # the mean length of chunks has changed: the rows that stayed have the weights of before
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], rel=0.1)

    monkeypatch.undo()
    assert push_index(index, cluster, "medical").inserted == summary.chunks
    same(MilvusRetriever.open(cluster, "medical").search(QUERIES, 10), open_index(index).search(QUERIES, 10))
    assert push_index(index, cluster, "medical").inserted == 0
    assert push_index(index, cluster, "medical", overwrite=True).anew
    release(file)


def test_the_embedded_file_keeps_no_byte_of_an_erased_document(tmp_path: Path, source: Path) -> None:
    corpus = rows()[:4]
    corpus[0]["text"] = "# Erased\n\nThe quokka protocol of ward nine."
    index, file = built(write(tmp_path / "source", corpus), tmp_path / "index"), tmp_path / "x.db"
    push_index(index, str(file), "medical")
    assert holds(file, "quokka")
    write(tmp_path / "source", corpus[1:])
    built(tmp_path / "source", index)
    assert push_index(index, str(file), "medical").anew
    assert not holds(file, "quokka")
    release(str(file))


def holds(folder: Path, word: str) -> bool:
    import pyarrow.parquet

    for path in (path for path in folder.rglob("*") if path.is_file()):
        if word.encode() in path.read_bytes():
            return True
        if path.suffix == ".parquet" and word in str(pyarrow.parquet.read_table(path).to_pylist()):
            return True
    return False


def test_another_encoder_and_a_foreign_collection_are_refused(
    tmp_path: Path, source: Path, folder: Path, uri: str
) -> None:
    small = write(tmp_path / "source", rows()[:2])
    other = build_index(
        small, tmp_path / "other", encoder=EncoderRecipe(backend="torch", document_prompt="passage: ")
    ).path
    with pytest.raises(ArtifactError, match=r"was made with the encoder .* of other files or prompts"):
        push_index(other, uri, "medical")
    client = Collections(uri, "mine").client
    client.create_collection("mine", dimension=4)
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match=r"collection mine at .* is not one that raft has made"):
            push_index(folder, uri, "mine", overwrite=overwrite)
    assert client.has_collection("mine")


def test_an_unfinished_push_is_not_searched_and_goes_on(
    folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raft.indexing.push._BATCH", 20)

    def stop(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_index(folder, uri, "stopped", on_progress=stop)
    with pytest.raises(ArtifactError, match="the push has not finished"):
        MilvusRetriever.open(uri, "stopped")
    summary = push_index(folder, uri, "stopped")
    assert summary.kept == 40
    same(MilvusRetriever.open(uri, "stopped").search(QUERIES, 10), open_index(folder).search(QUERIES, 10))


def test_errors_are_one_line(folder: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="there is no collection nowhere"):
        MilvusRetriever.open(uri, "nowhere")
    with pytest.raises(UsageError, match="is no name of a collection"):
        MilvusRetriever.open(uri, "a b")
    with pytest.raises(
        EndpointError, match=r"Milvus at http://127.0.0.1:1: .*\. Check the address, and the token in T"
    ):
        push_index(folder, "http://127.0.0.1:1", "medical", token_env="T")
    with pytest.raises(EndpointError, match="no other process"):
        push_index(folder, str(tmp_path / "no" / "x.db"), "medical")
    with pytest.raises(ArtifactError, match=r"there is no file .*x\.db"):
        MilvusRetriever.open(str(tmp_path / "x.db"), "medical")
    assert not (tmp_path / "x.db").exists()
    with pytest.raises(UsageError, match="k is 0"):
        MilvusRetriever.open(uri, "medical").search(QUERIES, 0)
    with pytest.raises(UsageError, match="needs a reranker"):
        MilvusRetriever.open(uri, "medical").search(QUERIES, 3, "reranked")
    monkeypatch.setattr("raft.indexing.push.MOST_BYTES", 100)
    with pytest.raises(InputError, match="Milvus holds 100 and"):
        push_index(folder, uri, "long")


def test_open_retriever_takes_a_folder_or_a_collection(folder: Path, uri: str) -> None:
    assert isinstance(open_retriever(folder), Index)
    found = open_retriever(Path(f"milvus:{uri}#medical"), labels=("icu",))
    assert isinstance(found, MilvusRetriever)
    assert found.labels == {"icu"}
    with pytest.raises(UsageError, match="names no collection"):
        open_retriever("milvus:./x.db")
    with pytest.raises(EndpointError, match=r"Milvus at http://127.0.0.1:1:"):
        open_retriever(Path("milvus:http://127.0.0.1:1#medical"))


def test_the_command(folder: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    app(["index", "push", str(folder), "--uri", uri, "--collection", "medical"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "0 sent, 0 deleted" in said
    assert f'--index "milvus:{uri}#medical"' in said
