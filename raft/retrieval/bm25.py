"""Lexical search (BM25F) over the words of the chunks and of their titles. Position i is chunk i of the corpus.

Words are lower-cased and stemmed (Snowball English), stopwords dropped. Numbers keep their points, so that
"12.3" finds clause 12.3 and neither 12 nor 3::

    words(["Under clause 12.3, fees of 1,500 fall due"])
    [["under", "claus", "12.3", "fee", "1,500", "fall", "due"]]

The index is the table of words by chunks, kept word by word (compressed sparse columns), one array a file, and read
straight from the disk: opening costs the same for a thousand chunks and for a million. Folder ``bm25/``::

    terms.npy     uint8    the words in the order of their UTF-8 bytes, one after the other
    ends.npy      int64    [words]       where each word ends in them
    columns.npy   int64    [words + 1]   where each word's postings begin and end
    rows.npy      int32    [postings]    the chunks that hold the word, in order
    mentions.npy  int32    [postings]    twice how often the chunk's text holds it, plus 1 when its title does
    weights.npy   float32  [postings]    the score that the word gives to the chunk
    lengths.npy   int32    [chunks]      how many words the chunk's text has

bm25s cuts the texts into words. Its own index is not used: it knows no titles, cannot be changed without cutting
every text again, and keeps its vocabulary as JSON that must be parsed whole at each opening. Without titles the
weights are those that it computes (a test compares them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.corpus.store import load_array
from raft.errors import ArtifactError
from raft.records import Chunk

if TYPE_CHECKING:
    import numpy as np

    from raft.retrieval.dense import Ranking

BM25 = "bm25"
K1 = 1.2
B = 0.75
TITLE_WEIGHT = 5.0  # benchmarks/fusion_study.py compares others

_WORD = r"(?u)\b\d+(?:[.,]\d+)+\b|\b\w+\b"
_DTYPES = {
    "terms": "uint8", "ends": "int64", "columns": "int64", "rows": "int32", "mentions": "int32",
    "weights": "float32", "lengths": "int32",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Bm25Index:
    """The simple BM25F of Robertson, Zaragoza and Taylor (2004, "Simple BM25 extension to multiple weighted fields")
    over two fields, text and title, the weights computed when it is built (Lù 2024, arXiv 2407.03618).

    A chunk's title and headings are those of the chunks around it too. Counted like words of the text, they let a
    clause that repeats its contract's name outrank the clause that was asked for; as a field that is either named
    or not, and that no length divides, they choose the document and leave the choice of the chunk to the text.
    """

    terms: np.ndarray
    ends: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    mentions: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray

    @classmethod
    def build(cls, texts: Sequence[str], titles: Sequence[str] = ()) -> Bm25Index:
        """Index chunks by their texts and by their titles (with headings), one a text, or none at all."""
        return cls._of_mentions(*_count(texts, titles))

    def update(self, kept_rows: Sequence[int], new_texts: Sequence[str], new_titles: Sequence[str] = ()) -> Bm25Index:
        """The index of a changed corpus, byte for byte the one that ``build`` makes of all its texts and titles.

        ``kept_rows`` has one number for each chunk of the changed corpus, in order: the chunk's row in this index,
        or -1 for the next of ``new_texts``, the only texts that are cut into words. Words that no chunk holds any
        more are gone. Raises ValueError when the -1s are not as many as the new texts.
        """
        import numpy as np
        from scipy import sparse

        kept = np.asarray(kept_rows, dtype=np.int64)
        old = kept >= 0
        if len(kept) - int(old.sum()) != len(new_texts):
            raise ValueError(f"{len(kept) - int(old.sum())} rows are new and {len(new_texts)} texts are given")
        shape = len(self.lengths), len(self.ends)
        by_chunk = sparse.csc_matrix((self.mentions, self.rows, self.columns), shape=shape).tocsr()[kept[old]]
        used = np.unique(by_chunk.indices)
        kept_terms = self._terms(used)
        new_terms, new = _count(new_texts, new_titles)
        terms = sorted({*kept_terms, *new_terms})
        column_of = {term: column for column, term in enumerate(terms)}
        renumbered = np.zeros(len(self.ends), dtype=np.int64)
        renumbered[used] = [column_of[term] for term in kept_terms]
        width = len(terms)
        columns = np.array([column_of[term] for term in new_terms], dtype=np.int64)
        parts = [
            _table(by_chunk.data, renumbered[by_chunk.indices], by_chunk.indptr, width),
            _table(new.data, columns[new.indices], new.indptr, width),
        ]
        order = np.where(old, np.cumsum(old) - 1, int(old.sum()) + np.cumsum(~old) - 1)
        return self._of_mentions(terms, sparse.vstack(parts, format="csr")[order])

    @classmethod
    def _of_mentions(cls, terms: Sequence[bytes], mentions: Any) -> Bm25Index:
        """The index of a sparse table of mentions [chunks, terms]."""
        import numpy as np

        by_term = mentions.tocsc()  # its rows are in order within each column
        holding = np.diff(by_term.indptr)
        rows = by_term.indices.astype(np.int32)
        lengths = np.bincount(rows, by_term.data >> 1, minlength=by_term.shape[0]).astype(np.int32)
        return cls(
            terms=np.frombuffer(b"".join(terms), dtype=np.uint8),
            ends=np.cumsum([len(term) for term in terms], dtype=np.int64),
            columns=by_term.indptr.astype(np.int64),
            rows=rows,
            mentions=by_term.data.astype(np.int32),
            weights=weights_of(by_term.data, rows, holding, lengths),
            lengths=lengths,
        )

    @classmethod
    def load(cls, folder: Path) -> Bm25Index:
        """The saved index, its arrays left on the disk until they are read. Raises ArtifactError when a file is
        missing, damaged, or does not fit the others."""
        import numpy as np

        try:
            arrays = {name: np.asarray(load_array(folder / BM25 / f"{name}.npy")) for name in _DTYPES}
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{folder / BM25} cannot be read ({error})", "Make the index again") from None
        index = cls(**arrays)
        if not index._fits():
            raise ArtifactError(f"{folder / BM25} cannot be read (its files do not fit)", "Make the index again")
        return index

    def _fits(self) -> bool:
        typed = all(
            array.ndim == 1 and array.dtype == _DTYPES[field.name]
            for field in fields(self)
            for array in [getattr(self, field.name)]
        )
        return (
            typed
            and len(self.columns) == len(self.ends) + 1
            and int(self.ends[-1] if len(self.ends) else 0) == len(self.terms)
            and int(self.columns[-1]) == len(self.rows) == len(self.mentions) == len(self.weights)
        )

    def save(self, folder: Path) -> None:
        import numpy as np

        (folder / BM25).mkdir(parents=True, exist_ok=True)
        for name in _DTYPES:
            np.save(folder / BM25 / f"{name}.npy", getattr(self, name), allow_pickle=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def scores(self, query: str) -> np.ndarray:
        """The score of every chunk, float32 [chunks]; 0 where no word of the query stands."""
        return next(self.scores_of_each([query]))

    def scores_of_each(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """``scores`` of one query after another, all of which are split into words at once."""
        split = words(queries)
        columns = {word: self._column(_encoded(word)) for word in set(chain.from_iterable(split))}
        return (self._scores([columns[word] for word in query_words]) for query_words in split)

    def _scores(self, columns: Iterable[int | None]) -> np.ndarray:
        import numpy as np

        totals = np.zeros(len(self), dtype=np.float32)
        for column in columns:
            if column is not None:
                postings = slice(int(self.columns[column]), int(self.columns[column + 1]))
                totals[self.rows[postings]] += self.weights[postings]  # a chunk stands in a column once
        return totals

    def _column(self, term: bytes) -> int | None:
        """Where the term stands among the sorted ones, by bisection: no vocabulary is ever held in memory."""
        low, high = 0, len(self.ends)
        while low < high:
            middle = (low + high) // 2
            found = self._term(middle)
            if found == term:
                return middle
            low, high = (middle + 1, high) if found < term else (low, middle)
        return None

    def _term(self, column: int) -> bytes:
        return self.terms[int(self.ends[column - 1]) if column else 0 : int(self.ends[column])].tobytes()

    def vocabulary(self) -> list[bytes]:
        """The words of texts and titles, sorted, in UTF-8."""
        return self._terms(range(len(self.ends)))

    def _terms(self, columns: Iterable[int]) -> list[bytes]:
        blob, ends = self.terms.tobytes(), [*self.ends.tolist(), 0]  # ends[-1] is where the first term begins
        return [blob[ends[column - 1] : ends[column]] for column in columns]


def title_of(chunk: Chunk) -> str:
    """What ``build`` takes as the chunk's title: its document's title and the headings over it."""
    return " > ".join(part for part in (chunk.title, *chunk.headings) if part)


def words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text as they are indexed and searched."""
    found = _tokenized(texts)
    word_of = {number: word for word, number in found.vocab.items()}
    return [[word_of[number] for number in numbers] for numbers in found.ids]


def _tokenized(texts: Sequence[str]) -> Any:
    """bm25s' ``Tokenized``: the numbers of each text's words, and the words' numbers."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(list(texts), token_pattern=_WORD, stopwords="en", stemmer=stemmer, show_progress=False)


def _encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")


def _count(texts: Sequence[str], titles: Sequence[str]) -> tuple[list[bytes], Any]:
    """The words of texts and titles, sorted, and the sparse table of their mentions, int32 [texts, words]."""
    import numpy as np

    if titles and len(titles) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(titles)} titles; expected equal numbers, or no titles")
    found = _tokenized([*texts, *titles])
    terms = sorted((_encoded(word), number) for word, number in found.vocab.items())
    column_of = np.zeros(len(terms), dtype=np.int64)
    column_of[[number for _, number in terms]] = np.arange(len(terms))
    ends = np.cumsum([0, *(len(numbers) for numbers in found.ids)], dtype=np.int64)
    numbers = np.fromiter(chain.from_iterable(found.ids), dtype=np.int64, count=int(ends[-1]))
    counts = _table(np.ones(len(numbers), dtype=np.int32), column_of[numbers], ends, len(terms))
    counts.sum_duplicates()
    mentions = 2 * counts[: len(texts)]
    if titles:
        mentions = mentions + counts[len(texts) :].sign()
    return [term for term, _ in terms], mentions


def _table(values: np.ndarray, columns: np.ndarray, ends: np.ndarray, width: int) -> Any:
    from scipy import sparse

    return sparse.csr_matrix((values, columns, ends), shape=(len(ends) - 1, width))


def weights_of(
    mentions: np.ndarray,
    rows: np.ndarray,
    holding: np.ndarray,
    lengths: np.ndarray,
    k1: float = K1,
    title_weight: float = TITLE_WEIGHT,
) -> np.ndarray:
    """The score each word gives to each chunk that holds it, float32 [postings], word by word.

    idf * tf / (k1 + tf), tf = count / (1 - b + b * length / mean length) + title_weight if the title holds the word
    (Robertson et al. 2004, sections 2 and 3), idf = ln(1 + (N - n + 0.5) / (n + 0.5)) for n of N chunks with the
    word (Lucene's; Kamphuis et al. 2020, table 1). ``mentions`` and ``rows`` are [postings]; ``holding`` is n,
    [words]; ``lengths`` is [chunks].
    """
    import numpy as np

    idf = np.log1p((len(lengths) - holding + 0.5) / (holding + 0.5))
    mean = max(float(lengths.sum(dtype=np.int64)), 1.0) / max(len(lengths), 1)
    normal = 1 - B + B * lengths / mean
    frequencies = (mentions >> 1) / normal[rows] + title_weight * (mentions & 1)
    weights: np.ndarray = np.repeat(idf, holding) * frequencies / (k1 + frequencies)
    return weights.astype(np.float32)


def top(scores: np.ndarray, k: int) -> Ranking:
    """The k highest scores above 0 with their positions, best first; equal scores in order of position."""
    import numpy as np

    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > k:
        least = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= least]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return [(int(position), float(scores[position])) for position in best]
