"""raft index: a source of documents -> the index, or its next version.

    build_index(Path("corpora/legal"), Path("indexes/legal"))       # everything is read, cut and encoded
    build_index(Path("corpora/legal"), Path("indexes/legal"))       # again: only what changed since

Four things are taken from the version before, each by what it was made of: the documents of a file by the hash of
its bytes, the chunks of a document by its text and metadata, the vector and the words of a chunk by the text and
titles under which it is found. A build that was stopped leaves what it has encoded to the next one.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raft
from raft.artifacts import MANIFEST, Draft, hash_file
from raft.config import ChunkingRecipe, DenseRecipe, EncoderRecipe, ReadingRecipe, RuleRecipe
from raft.corpus.chunking import split_documents
from raft.corpus.store import CHUNKS, DOCUMENTS, RowWriter, open_chunks, open_documents, to_line
from raft.errors import ArtifactError, InputError, RecipeError, UsageError
from raft.indexing.documents import Documents, DocumentWriter
from raft.indexing.embeddings import JOURNAL, KEY_BYTES, EmbeddingJournal, OnProgress, encode_sorted, key_of
from raft.indexing.parallel import NOT_OF_THE_ENCODER, encoded_blocks
from raft.indexing.previous import CUT, KEYS, OUTCOMES, SOURCES, Previous, differences, full_name, open_previous
from raft.readers.source import ReadOutcome, count_files, read_source
from raft.records import Chunk, Document
from raft.retrieval.bm25 import Bm25Index, title_of
from raft.retrieval.dense import DenseIndex
from raft.retrieval.encoder import Encoder, encoder_fingerprint
from raft.retrieval.filters import write_facets
from raft.retrieval.index import search_text
from raft.versions import Unchanged, new_version

if TYPE_CHECKING:
    from raft.retrieval.backends import Vectors

_BLOCK = 1024  # vectors copied at once
_CUT_AT_ONCE = 64  # documents
_CUTTERS = 2  # threads; most of the work is Python's own, which runs on one core


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What ``build_index`` made. ``outcomes`` counts files and rows by status, ``left_out`` holds all that was skipped
    or refused; ``cut`` counts the chunks that, with the titles before them, are longer than the encoder reads;
    ``parsed`` files and ``encoded`` chunks were not taken from the version before. ``version`` is the one that now
    stands, ``changed`` whether this run wrote it; ``idle_rules`` are the paths of rules that met no file."""

    path: Path
    version: str
    changed: bool
    documents: int
    chunks: int
    cut: int
    parsed: int
    encoded: int
    outcomes: Mapping[str, int]
    left_out: tuple[ReadOutcome, ...]
    idle_rules: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Recipes:
    source: Path
    reading: ReadingRecipe
    rules: tuple[RuleRecipe, ...]
    chunking: ChunkingRecipe
    encoder: EncoderRecipe
    dense: DenseRecipe

    def dump(self) -> dict[str, Any]:
        parts = ("reading", "chunking", "encoder", "dense")
        rules = [rule.model_dump(mode="json") for rule in self.rules]
        dumped = {name: getattr(self, name).model_dump(mode="json") for name in parts}
        return {"source": full_name(self.source), "rules": rules, **dumped}


def build_index(
    source: Path,
    out: Path,
    *,
    reading: ReadingRecipe = ReadingRecipe(),  # type: ignore[call-arg]
    rules: Sequence[RuleRecipe] = (),
    chunking: ChunkingRecipe = ChunkingRecipe(),  # type: ignore[call-arg]
    encoder: EncoderRecipe = EncoderRecipe(),  # type: ignore[call-arg]
    dense: DenseRecipe = DenseRecipe(),  # type: ignore[call-arg]
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> IndexSummary:
    """Read, chunk, encode and index the documents of ``source`` into the artefact ``out``, or bring it up to date.

    ``overwrite`` makes ``out`` anew, whatever it was made of, and takes from it the vectors of the same encoder alone.
    Raises InputError when there is nothing to index or the disk fails; ArtifactError when ``out`` is something else
    or damaged, or was made of another source or with other settings and ``overwrite`` is not set; UsageError when
    another process writes it; ModelError when the encoder cannot be loaded; RecipeError when chunks would be longer
    than it reads.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--out {out} lies inside the source {source}", "Name a folder outside of the documents")
    began = time.monotonic()
    recipes = _Recipes(source, reading, tuple(rules), chunking, encoder, dense)
    with new_version(out, "index", recipes.dump(), keep=(JOURNAL,)) as draft:
        build = _Build(recipes, _previous(out, recipes, overwrite), overwrite, on_progress)
        build.read(draft)
        build.chunk(draft)
        build.encode(draft)
    return build.summary(out, time.monotonic() - began)


def _previous(out: Path, recipes: _Recipes, overwrite: bool) -> Previous | None:
    """The version to update. With ``overwrite`` one that cannot be read is as good as none."""
    if not (out / MANIFEST).exists():
        return None
    try:
        previous = open_previous(out)
    except ArtifactError:
        if overwrite:
            return None
        raise
    differ = differences(previous.manifest.recipe, recipes.dump())
    if differ and not overwrite:
        raise ArtifactError(
            f"{out} was made with other settings ({'; '.join(differ)})",
            "Name another --out, or make it anew with --overwrite",
        )
    return previous


class _Build:
    """The three stages of one build; each writes its files into the draft."""

    def __init__(self, recipes: _Recipes, previous: Previous | None, overwrite: bool, on_progress: OnProgress) -> None:
        self._recipes = recipes
        self._previous = previous
        self._overwrite = overwrite
        self._on_progress = on_progress
        self._documents = Documents()
        self._encoder: Encoder | None = None
        self._fingerprint = encoder_fingerprint(recipes.encoder.model, recipes.encoder.document_prompt)
        facts = {} if previous is None else previous.manifest.facts
        self._has_vectors = facts.get("encoder_fingerprint") == self._fingerprint
        self._encoded = 0
        self._kept: list[int] = []  # for each chunk the row in the previous version that has its vector, or -1
        self._new: list[Chunk] = []  # the chunks that have none there, with their keys
        self._new_keys: list[bytes] = []
        self._prefix = ("", 0)  # of the last chunk, and its tokens
        self._cut: list[int] = []  # rows of the chunks that are longer than the encoder reads
        self._version = ""

    def _same(self, *parts: str) -> bool:
        """Whether what these parts of the recipe make can be taken from the previous version: it was made with the
        same ones by this raft, and is not made anew."""
        if self._previous is None or self._overwrite:
            return False
        was, now = self._previous.manifest.recipe, self._recipes.dump()
        made_by = self._previous.manifest.facts.get("raft") == raft.__version__
        return made_by and not differences({p: was.get(p) for p in parts}, {p: now[p] for p in parts})

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, draft: Draft) -> None:
        """Raises InputError when there is nothing to index, Unchanged when nothing has changed."""
        source, previous = self._recipes.source, self._previous
        reusable = previous if self._same("source", "reading", "rules") else None
        total = count_files(source)
        with DocumentWriter(draft.folder, reusable, self._recipes.rules) as writer:
            self._documents = writer.written
            known = reusable.known if reusable is not None else {}
            for done, file in enumerate(read_source(source, self._recipes.reading, known), 1):
                writer.add(file)
                self._on_progress("reading", done, total)
        if not self._documents.old_rows:
            left_out = self._documents.left_out
            first = f" (the first: {left_out[0].source} {left_out[0].reason})" if left_out else ""
            remedy = "Give a folder or file of documents"
            raise InputError(
                f"nothing to index in {source}: {len(left_out)} files or rows were left out{first}",
                remedy if previous is None else f"{remedy}, or delete the index of those that were there",
            )
        draft.inputs[full_name(source)] = hash_file(draft.folder / f"{DOCUMENTS}.jsonl")
        if reusable is not None and self._same("chunking", "encoder", "dense") and self._is_unchanged(draft, reusable):
            raise Unchanged

    def _is_unchanged(self, draft: Draft, previous: Previous) -> bool:
        files = previous.manifest.files
        names = (f"{DOCUMENTS}.jsonl", SOURCES, OUTCOMES)
        return self._has_vectors and all(hash_file(draft.folder / name) == files.get(name) for name in names)

    # --- chunking --------------------------------------------------------------------------------------------------

    def chunk(self, draft: Draft) -> None:
        """Write the chunks and say which of them the previous version holds a vector for."""
        import numpy as np

        # Where to cut depends on the encoder's tokenizer: another encoder cuts anew.
        previous = (
            self._previous if self._has_vectors and self._same("source", "reading", "rules", "chunking") else None
        )
        owners = array("i")
        documents = open_documents(draft.folder)
        old_rows = self._documents.old_rows if previous is not None else [-1] * len(documents)
        with RowWriter(draft.folder, CHUNKS) as writer, ThreadPoolExecutor(_CUTTERS) as pool:
            for first in range(0, len(documents), _CUT_AT_ONCE):
                rows = range(first, min(first + _CUT_AT_ONCE, len(documents)))
                cut = self._cut_documents([documents[row] for row in rows if old_rows[row] < 0], pool)
                for row in rows:
                    if previous is not None and old_rows[row] >= 0:
                        self._copy_document(previous, old_rows[row], writer)
                    else:
                        self._write_chunks(next(cut), writer)
                    owners.extend([row] * (len(writer) - len(owners)))
                    self._on_progress("chunking", row + 1, len(documents))
        np.save(draft.folder / CUT, np.asarray(self._cut, dtype=np.int64))
        write_facets(draft.folder, self._documents.facets, np.asarray(owners, dtype=np.int32))

    def _copy_document(self, previous: Previous, old: int, writer: RowWriter) -> None:
        """Take the chunks of an unchanged document, and their vectors."""
        rows, at = previous.chunk_rows(old), len(writer)
        writer.copy(previous.chunks, rows.start, rows.stop)
        self._kept += rows
        first, last = previous.cut.searchsorted([rows.start, rows.stop]).tolist()
        self._cut += (previous.cut[first:last] - rows.start + at).tolist()

    def _cut_documents(self, documents: Sequence[Document], pool: ThreadPoolExecutor) -> Iterator[list[Chunk]]:
        """The chunks of each document. The tokenizer lets other threads work beside it."""
        if not documents:
            return iter(())
        offsets, settings = self._load_encoder().token_offsets, self._recipes.chunking.model_dump()
        return pool.map(lambda document: [*split_documents([document], offsets, **settings)], documents)

    def _write_chunks(self, chunks: Sequence[Chunk], writer: RowWriter) -> None:
        encoder = self._load_encoder()
        for chunk in chunks:
            if self._is_cut(chunk, encoder):
                self._cut.append(len(writer))
            writer.write(chunk.id, to_line(chunk))
            key = key_of(chunk)
            old = self._previous.rows_by_key.get(key, -1) if self._previous and self._has_vectors else -1
            self._kept.append(old)
            if old < 0:
                self._new.append(chunk)
                self._new_keys.append(key)

    def _is_cut(self, chunk: Chunk, encoder: Encoder) -> bool:
        """Whether the encoder reads only the beginning of a chunk: a user's own, or one behind a long title."""
        text = search_text(chunk)
        if not self._recipes.chunking.as_is:
            prefix = text[: len(text) - len(chunk.text)]
            if prefix != self._prefix[0]:
                self._prefix = (prefix, len(encoder.token_offsets(prefix)))
            if self._recipes.chunking.max_tokens + self._prefix[1] <= encoder.max_tokens:
                return False
        return len(encoder.token_offsets(text)) > encoder.max_tokens

    def _check_window(self, encoder: Encoder) -> None:
        chunking = self._recipes.chunking
        if chunking.max_tokens > encoder.max_tokens and not chunking.as_is:
            raise RecipeError(
                f"chunking.max_tokens = {chunking.max_tokens}: the encoder {encoder.name} reads at most "
                f"{encoder.max_tokens} tokens",
                f"Set chunking.max_tokens to {encoder.max_tokens} or less, or choose another encoder",
            )

    # --- encoding --------------------------------------------------------------------------------------------------

    def encode(self, draft: Draft) -> None:
        """Encode the chunks that have no vector yet, and write both searches."""
        import numpy as np

        dense = DenseIndex.build(self._vectors(draft), self._recipes.dense)
        dense.save(draft.folder)
        self._lexical(draft).save(draft.folder)
        np.save(draft.folder / KEYS, self._keys())
        counts = self._documents.statuses
        draft.facts |= {
            "raft": raft.__version__, "documents": counts["indexed"], "chunks": len(self._kept),
            "cut": len(self._cut), "refused": counts["refused"], "skipped": counts["skipped"],
            "labels": self._documents.labels, "encoder": self._recipes.encoder.model,
            "encoder_fingerprint": self._fingerprint, "dimension": dense.dimension, "dense": dense.facts,
        }  # fmt: skip
        self._version = draft.folder.name

    def _lexical(self, draft: Draft) -> Bm25Index:
        """The words of the kept chunks are taken from the previous version where this raft cut them."""
        update = self._previous is not None and self._same() and len(self._new) < len(self._kept)
        chunks = self._new if update else open_chunks(draft.folder)
        texts, titles = [], []
        for chunk in chunks:
            texts.append(chunk.text)
            titles.append(title_of(chunk))
        if update and self._previous is not None:
            return self._previous.bm25.update(self._kept, texts, titles)
        return Bm25Index.build(texts, titles)

    def _keys(self) -> Any:
        import numpy as np

        kept = np.asarray(self._kept, dtype=np.int64)
        keys = np.empty((len(kept), KEY_BYTES), dtype=np.uint8)
        if self._previous is not None and (kept >= 0).any():
            keys[kept >= 0] = self._previous.keys[kept[kept >= 0]]
        if self._new_keys:
            keys[kept < 0] = np.frombuffer(b"".join(self._new_keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
        return keys

    def _vectors(self, draft: Draft) -> Vectors:
        """The vector of every chunk, float32 [chunks, dimension]."""
        import numpy as np

        kept = np.asarray(self._kept, dtype=np.int64)
        old = self._previous.dense if self._previous is not None and (kept >= 0).any() else None
        dimension = old.dimension if old is not None else self._load_encoder().dimension
        vectors = np.empty((len(kept), dimension), dtype=np.float32)
        there = np.flatnonzero(kept >= 0)
        for first in range(0, len(there), _BLOCK) if old is not None else ():
            rows = there[first : first + _BLOCK]
            vectors[rows] = old.vectors(kept[rows])  # type: ignore[union-attr]
        if self._new:
            journal = EmbeddingJournal(draft.folder.parent / JOURNAL, self._fingerprint)
            self._encode_new(journal, vectors, np.flatnonzero(kept < 0).tolist())
        return vectors

    def _encode_new(self, journal: EmbeddingJournal, vectors: Vectors, new_rows: Sequence[int]) -> None:
        """Fill in the new rows: from the journal, else each text encoded once, longest first, block by block."""
        rows_of: dict[bytes, list[int]] = {}
        for key, row in zip(self._new_keys, new_rows, strict=True):
            rows_of.setdefault(key, []).append(row)
        missing = dict(zip(self._new_keys, self._new, strict=True))
        for key, vector in journal.read():
            if missing.pop(key, None) is not None:
                vectors[rows_of[key]] = vector
        order = sorted(missing, key=lambda key: -len(missing[key].text))
        self._encoded = len(order)
        for keys, found in self._encoded_blocks(order, missing):
            journal.append(keys, found)
            for key, vector in zip(keys, found, strict=True):
                vectors[rows_of[key]] = vector

    def _encoded_blocks(
        self, order: Sequence[bytes], chunks: Mapping[bytes, Chunk]
    ) -> Iterator[tuple[list[bytes], Vectors]]:
        """Keys with their vectors, encoded in this process or, where the recipe says so, by Ray's workers."""
        recipe, done = self._recipes.encoder, 0
        if recipe.workers and order:
            texts = [search_text(chunks[key]) for key in order]
            for rows, found in encoded_blocks(texts, recipe, recipe.batch_size, recipe.workers, recipe.ray_address):
                done += len(rows)
                self._on_progress("encoding", done, len(order))
                yield [order[row] for row in rows], found
            return
        if order:
            yield from encode_sorted(order, chunks, self._load_encoder(), recipe.batch_size, self._on_progress)

    def _load_encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder.load(**self._recipes.encoder.model_dump(exclude=set(NOT_OF_THE_ENCODER)))
            self._check_window(self._encoder)
        return self._encoder

    def summary(self, out: Path, seconds: float) -> IndexSummary:
        facts = self._previous.manifest.facts if self._previous is not None and not self._version else {}
        version = self._version or (self._previous.manifest.version if self._previous is not None else "")
        documents = self._documents
        return IndexSummary(
            path=out, version=version, changed=bool(self._version), documents=documents.statuses["indexed"],
            chunks=facts.get("chunks", len(self._kept)), cut=facts.get("cut", len(self._cut)), parsed=documents.parsed,
            encoded=self._encoded, outcomes=dict(documents.statuses), left_out=tuple(documents.left_out),
            idle_rules=tuple(documents.idle_rules), seconds=seconds,
        )  # fmt: skip
