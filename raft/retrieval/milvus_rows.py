"""An index as Milvus holds it: two collections, and how names, dates and words are written in them.

    collections = Collections("./medical.db", "medical")        # or "http://host:19530"
    collections.facts().chunks                                  # 366
    collections.search("vector", [vector], 5, expression)       # [[{"key": "9f86d0...", "score": 0.71, ...}, ...]]

MEDICAL has a row a chunk::

    key          hash of all that the row holds: a chunk that changes in any way is another row
    chunk        the line of chunks.jsonl            document_id, start     what orders equal scores
    source       as hexadecimal digits               labels, tags           the hash of the label set, of each tag
    first_day, last_day     what the date spans, e.g. 20260300 and 20260399 for 2026-03; 0 where there is none
    vector       the encoder's                       words                  numbers of words with their weights

MEDICAL_raft_facts holds the ``Facts``, cut into rows. A BM25 weight has two factors: idf, which every update moves, is
taken from the facts when a query is asked; the other one lies with the chunk and depends on the mean length of chunks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raft.artifacts import digest
from raft.errors import ArtifactError, EndpointError, ModelError, UsageError
from raft.records import Chunk, chunk_from_row

if TYPE_CHECKING:
    import numpy as np

TOKEN_ENV = "MILVUS_TOKEN"  # the name of the environment variable that holds a cluster's token
MOST_BYTES = 65_535  # of one text field
MOST_TAGS = 4096
NO_WORD = 2**31  # the dimension of a chunk without words: Milvus takes no empty vector
_PART = 60_000  # characters of the facts in one row
_KEYS_AT_ONCE = 500


def hash_of(value: object) -> str:
    """32 hexadecimal digits for a name, or for a list of names."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def to_hex(text: str) -> str:
    """The digits of the text's UTF-8: one text begins with another where its digits do."""
    return text.encode("utf-8", "surrogatepass").hex()


def days_of(date: str) -> tuple[int, int]:
    """The first and the last day that a date can mean: 2026-03 is 20260300 and 20260399. Dates compare as exactly as
    both are given where the one's first day is compared with the other's last."""
    digits = date.replace("-", "")
    return int(digits.ljust(8, "0")), int(digits.ljust(8, "9"))


def word_number(word: bytes) -> int:
    """The dimension of a word: 31 bits of its hash. Of a million words some two hundred share theirs with another."""
    return int.from_bytes(hashlib.blake2b(word, digest_size=4).digest(), "big") >> 1


def idf(holding: np.ndarray, chunks: int) -> np.ndarray:
    """ln(1 + (N - n + 0.5) / (n + 0.5)), the factor of a word in ``raft.retrieval.bm25.weights_of``."""
    import numpy as np

    found: np.ndarray = np.log1p((chunks - holding + 0.5) / (holding + 0.5))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What a search needs to know of the whole collection."""

    encoder: Mapping[str, Any]
    """the recipe of the encoder"""
    encoder_fingerprint: str
    corpus: str
    """the corpus' fingerprint; "" while the first push has not finished"""
    chunks: int
    label_sets: tuple[tuple[str, ...], ...]
    mean_words: float
    """of a chunk when the rows were written: their BM25 weights depend on it"""
    numbers: np.ndarray
    """of the words, sorted, int64 [words]"""
    holding: np.ndarray
    """how many chunks hold each word, int64 [words]"""
    sample: np.ndarray
    """the vectors that a query's spread of cosines is measured on, float32 [sample, dimension]"""

    _ARRAYS: ClassVar = ("numbers", "holding", "sample")
    _ROWS: ClassVar = ("encoder", "encoder_fingerprint", "corpus", "chunks", "label_sets", "mean_words")

    def dump(self) -> str:
        import numpy as np

        buffer = io.BytesIO()
        rows = json.dumps({name: getattr(self, name) for name in self._ROWS}).encode()
        arrays = {name: getattr(self, name) for name in self._ARRAYS}
        np.savez_compressed(buffer, rows=np.frombuffer(rows, dtype=np.uint8), **arrays)
        return b64encode(buffer.getvalue()).decode()

    @classmethod
    def parse(cls, text: str) -> Facts:
        import numpy as np

        with np.load(io.BytesIO(b64decode(text)), allow_pickle=False) as arrays:
            rows = json.loads(arrays["rows"].tobytes())
            rows["label_sets"] = tuple(tuple(labels) for labels in rows["label_sets"])
            return cls(**rows, **{name: arrays[name] for name in cls._ARRAYS})


def is_embedded(uri: str) -> bool:
    """Whether an address names a file that Milvus runs on in this process."""
    return uri.endswith(".db")


class Collections:
    """The two collections of one index at one address. Every method raises EndpointError when Milvus fails."""

    def __init__(self, uri: str, name: str, token_env: str = TOKEN_ENV) -> None:
        """Raises UsageError for a name that Milvus would not take, ModelError where pymilvus is not installed."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", name):
            raise UsageError(f"--collection {name!r} is no name of a collection", "Use letters, digits and _")
        pymilvus = _pymilvus(uri)
        self.uri, self.name, self.facts_name = uri, name, f"{name}_raft_facts"
        self._token_env = token_env
        with self.failing():
            self.client = pymilvus.MilvusClient(uri, token=os.environ.get(token_env, ""), timeout=10)

    @property
    def is_embedded(self) -> bool:
        return is_embedded(self.uri)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turns what Milvus raises into one line."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            first = (str(error.message).splitlines() or ["no reason given"])[0][:300]
            remedy = (
                "Check that its folder can be written and that no other process has it open"
                if self.is_embedded
                else f"Check the address, and the token in {self._token_env}"
            )
            raise EndpointError(f"Milvus at {self.uri}: {first}", remedy) from None

    def create(self, dimension: int, vector_index: str) -> None:
        """Make both, empty. The facts come first: a collection without them is not raft's."""
        from pymilvus import DataType, MilvusClient

        text = {"datatype": DataType.VARCHAR, "max_length": MOST_BYTES}
        short = {"datatype": DataType.VARCHAR, "max_length": 64}
        facts = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        facts.add_field("key", is_primary=True, **short)
        facts.add_field("text", **text)
        facts.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants a vector in every collection
        rows = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        rows.add_field("key", is_primary=True, **short)
        for name in ("chunk", "document_id", "source"):
            rows.add_field(name, **text)
        rows.add_field("labels", **short)
        rows.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MOST_TAGS, max_length=64)
        for name in ("start", "first_day", "last_day"):
            rows.add_field(name, DataType.INT64)
        rows.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        rows.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        self._create(self.facts_name, facts, {"nothing": "FLAT"})
        self._create(self.name, rows, {"vector": vector_index, "words": "SPARSE_INVERTED_INDEX"})

    def _create(self, name: str, schema: Any, kinds: Mapping[str, str]) -> None:
        """Strong consistency: a search after a push never sees what the push removed."""
        with self.failing():
            indexes = self.client.prepare_index_params()
            for field, kind in kinds.items():
                indexes.add_index(field, index_type=kind, metric_type="IP")
            self.client.create_collection(name, schema=schema, index_params=indexes, consistency_level="Strong")

    def drop(self) -> None:
        """Remove both, the facts last."""
        with self.failing():
            for name in (self.name, self.facts_name):
                if self.client.has_collection(name):
                    self.client.drop_collection(name)

    def facts(self) -> Facts | None:
        """None where there is no collection of this name. Raises ArtifactError for one that raft has not made."""
        with self.failing():
            if not self.client.has_collection(self.facts_name):
                if self.client.has_collection(self.name):
                    raise ArtifactError(
                        f"collection {self.name} at {self.uri} is not one that raft has made", "Name another collection"
                    )
                return None
            if not self.client.has_collection(self.name):
                return None
            self.client.load_collection(self.facts_name)
            self.client.load_collection(self.name)
            return self._read_facts()

    def _read_facts(self) -> Facts | None:
        head = self.client.get(self.facts_name, ids=["head"], output_fields=["text"])
        if not head:
            return None
        keys = _part_keys(json.loads(head[0]["text"]))
        rows = [row for key in keys for row in self.client.get(self.facts_name, ids=[key], output_fields=["text"])]
        if len(rows) < len(keys):
            raise ArtifactError(f"collection {self.name} at {self.uri} is just being written", "Try again")
        return Facts.parse("".join(row["text"] for row in rows))

    def write_facts(self, facts: Facts) -> None:
        """The parts first, then the row that names them, so that a reader sees the old facts or the new ones."""
        text = facts.dump()
        parts = [text[at : at + _PART] for at in range(0, len(text), _PART)]
        head = {"digest": digest(text)[:32], "parts": len(parts)}
        keys = _part_keys(head)
        with self.failing():
            old = {row["key"] for row in self.all_rows(self.facts_name)} - {"head", *keys}
            for key, part in zip(keys, parts, strict=True):
                self.client.upsert(self.facts_name, [_fact(key, part)])
            self.client.upsert(self.facts_name, [_fact("head", json.dumps(head))])
            if old:
                self.client.delete(self.facts_name, ids=sorted(old))

    def all_rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The key of every row."""
        with self.failing():
            found = self.client.query_iterator(name, batch_size=10_000, filter="", output_fields=["key"])
            while batch := found.next():
                yield from batch
            found.close()

    def search(
        self, field: str, queries: Sequence[Any], limit: int, expression: str, fields: Sequence[str] = ()
    ) -> list[list[dict[str, Any]]]:
        """For each query rows of key, document_id, start, score and the wanted fields, best first."""
        wanted = ["document_id", "start", *fields]
        with self.failing():
            found = self.client.search(
                self.name, data=list(queries), anns_field=field, limit=limit, filter=expression,
                output_fields=wanted, search_params={"metric_type": "IP"},
            )  # fmt: skip
        rows = [
            [{"key": hit["key"], "score": float(hit["distance"]), **hit["entity"]} for hit in hits] for hits in found
        ]
        return [sorted(hits, key=lambda row: (-row["score"], row["document_id"], row["start"])) for hits in rows]

    def chunks(self, keys: Collection[str]) -> dict[str, Chunk]:
        """The chunks of these rows; one that was deleted since it was found is left out."""
        found: dict[str, Chunk] = {}
        ordered = sorted(set(keys))
        with self.failing():
            for at in range(0, len(ordered), 500):
                rows = self.client.get(self.name, ids=ordered[at : at + 500], output_fields=["chunk"])
                found |= {row["key"]: chunk_from_row(json.loads(row["chunk"])) for row in rows}
        return found


def _part_keys(head: Mapping[str, Any]) -> list[str]:
    return [f"{head['digest']}-{part}" for part in range(head["parts"])]


def _fact(key: str, text: str) -> dict[str, Any]:
    return {"key": key, "text": text, "nothing": [0.0, 0.0]}


def _pymilvus(uri: str) -> Any:
    """The package, which otherwise writes a traceback for every error that it raises too."""
    wanted = ["pymilvus", *(["milvus_lite"] if uri.endswith(".db") else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"Milvus needs {' and '.join(missing)}", "pip install 'raft-tune[milvus]'")
    import pymilvus

    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pymilvus
