"""raft dataset check: a dataset -> proof that it keeps its word, property by property.

One function a property; what each gives, as a line of ``raft dataset check --json``::

    {"name": "documents_apart", "holds": false, "checked": 312, "broken": 1, "first": ["q-12@0"],
     "note": "a chunk of a dev or test question's document stands in a train context"}

The functions are pure: they see the rows alone, and may be asked about rows that never lay on a disk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import Any

from raft.artifacts import open_artifact
from raft.corpus.duplicates import near_duplicates
from raft.corpus.spans import find_span
from raft.dataset.exporters import read_chunks, read_examples
from raft.dataset.grounding import content_words, words
from raft.dataset.repeats import NEAR_DUPLICATE
from raft.errors import InputError
from raft.prompts import neutralize, parse_answer
from raft.records import Chunk, RaftExample
from raft.rows import read_rows

_SPLITS = ("train", "dev", "test")
_SHOWN = 5  # offending ids that a finding names
_CHANCE = 1e-6  # a share or a spread that chance gives less often than this is no chance
_LEAST_EXPECTED = 5  # oracles a place, below which the chi-square test says nothing (Cochran 1954)
_QUESTION_COLUMNS = ("id", "question", "split", "quotes", "document_ids")


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """The rows of a dataset: examples by split, chunks by id, rows of questions.jsonl, and its recipe's P."""

    examples: Mapping[str, Sequence[RaftExample]]
    chunks: Mapping[str, Chunk]
    questions: Sequence[Mapping[str, Any]]
    oracle_fraction: float | None = None

    def all_examples(self) -> Iterator[RaftExample]:
        for rows in self.examples.values():
            yield from rows


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a property holds, of how many rows that was asked, and the first ids that break it."""

    name: str
    holds: bool
    checked: int
    broken: int
    first: tuple[str, ...] = ()
    note: str = ""


@dataclass
class _Count:
    checked: int = 0
    broken: dict[str, None] = field(default_factory=dict)

    def see(self, name: str, good: bool) -> None:
        self.checked += 1
        if not good:
            self.broken[name] = None

    def finding(self, name: str, note: str) -> Finding:
        broken = tuple(self.broken)
        return Finding(name, not broken, self.checked, len(broken), broken[:_SHOWN], note if broken else "")


def check_dataset(folder: Path) -> list[Finding]:
    """What every property says of a dataset. Raises ArtifactError when it is damaged, InputError for broken rows."""
    return check_rows(read_dataset(folder))


def read_dataset(folder: Path) -> DatasetRows:
    """The rows of a dataset, every file verified. Raises as ``check_dataset`` does."""
    manifest = open_artifact(folder, "dataset")
    context = manifest.recipe.get("context")
    share = context.get("oracle_fraction") if isinstance(context, Mapping) else None
    examples = {split: list(read_examples(folder, split)) for split in _SPLITS}
    questions = list(_questions(folder / "questions.jsonl"))
    return DatasetRows({split: rows for split, rows in examples.items() if rows}, read_chunks(folder), questions, share)


def _questions(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(read_rows(path), 1):
        missing = [name for name in _QUESTION_COLUMNS if name not in row]
        if missing:
            raise InputError(f"{path} row {number} has no {missing[0]}", "Make the dataset again")
        yield {name: row[name] for name in _QUESTION_COLUMNS}


def check_rows(rows: DatasetRows) -> list[Finding]:
    """What every property says of these rows, in the order of ``PROPERTIES``."""
    return [check(rows) for check in PROPERTIES]


# --- contexts --------------------------------------------------------------------------------------------------------


def chunks_known(rows: DatasetRows) -> Finding:
    """Every chunk that an example or a quote names is in chunks.jsonl."""
    count = _Count()
    for row in rows.all_examples():
        count.see(row.id, all(name in rows.chunks for name in (*row.context, *row.oracle_ids)))
    for asked in rows.questions:
        count.see(asked["id"], all(quote["chunk_id"] in rows.chunks for quote in asked["quotes"]))
    return count.finding("chunks_known", "a chunk is named that chunks.jsonl lacks")


def contexts_without_repeats(rows: DatasetRows) -> Finding:
    """No context holds a chunk twice."""
    count = _Count()
    for row in rows.all_examples():
        count.see(row.id, len(set(row.context)) == len(row.context))
    return count.finding("contexts_without_repeats", "a chunk stands twice in one context")


def oracles_as_stated(rows: DatasetRows) -> Finding:
    """``oracle_present`` says what is there: all oracles of the question, or none of them."""
    count = _Count()
    for row in rows.all_examples():
        here = set(row.oracle_ids) & set(row.context)
        wanted = set(row.oracle_ids) if row.oracle_present else set()
        count.see(row.id, here == wanted and (bool(here) or not row.oracle_present))
    return count.finding("oracles_as_stated", "oracle_present says otherwise than the context")


def groups_share_context(rows: DatasetRows) -> Finding:
    """The examples of a group have the same context, chunk for chunk, the same draw, and stand together."""
    count = _Count()
    for examples in rows.examples.values():
        seen: set[str] = set()
        for group, members in groupby(examples, key=lambda row: row.group):
            listed = list(members)
            first = (listed[0].context, listed[0].draw)
            together = group not in seen
            seen.add(group)
            for row in listed:
                count.see(row.id, together and (row.context, row.draw) == first)
    return count.finding("groups_share_context", "a group is torn apart, or its contexts differ")


# --- targets ---------------------------------------------------------------------------------------------------------


def targets_parse(rows: DatasetRows) -> Finding:
    """Every target is well-formed, and its final answer is the example's answer."""
    count = _Count()
    for row in rows.all_examples():
        said = parse_answer(row.target)
        count.see(row.id, said.well_formed and said.final == neutralize(" ".join(row.answer.split())).strip())
    return count.finding("targets_parse", "a target does not end with the example's answer")


def refusals_in_place(rows: DatasetRows) -> Finding:
    """No target refuses while the oracle stands in the context."""
    count = _Count()
    for row in rows.all_examples():
        here = bool(row.oracle_ids) and set(row.oracle_ids) <= set(row.context)
        count.see(row.id, not (here and parse_answer(row.target).abstained))
    return count.finding("refusals_in_place", "a target refuses though its oracle stands in the context")


def target_quotes_verbatim(rows: DatasetRows) -> Finding:
    """Every quote of a target stands verbatim in the document it names; one that names none, in an oracle."""
    count, holds = _Count(), _Verbatim(rows.chunks)
    for row in rows.all_examples():
        for quote in parse_answer(row.target).quotes:
            if quote.document is None:
                places: Sequence[str] = [name for name in row.context if name in row.oracle_ids]
            else:
                places = row.context[quote.document - 1 : quote.document] if quote.document else ()
            count.see(row.id, any(holds(name, quote.text) for name in places))
    return count.finding("target_quotes_verbatim", "a target quotes what its document does not say")


def question_quotes_verbatim(rows: DatasetRows) -> Finding:
    """Every quote of a question stands verbatim in its chunk."""
    count, holds = _Count(), _Verbatim(rows.chunks)
    for row in rows.questions:
        for quote in row["quotes"]:
            count.see(row["id"], holds(quote["chunk_id"], " ".join(quote["text"].split())))
    return count.finding("question_quotes_verbatim", "a question quotes what its chunk does not say")


class _Verbatim:
    """Whether words stand in a chunk; asked often about the same chunks, so their text is folded once."""

    def __init__(self, chunks: Mapping[str, Chunk]) -> None:
        self._chunks = chunks
        self._folded: dict[str, str] = {}

    def __call__(self, name: str, quote: str) -> bool:
        if name not in self._chunks or not quote.strip():
            return False
        if name not in self._folded:
            self._folded[name] = neutralize(" ".join(self._chunks[name].text.split()))
        return verbatim_span(self._folded[name], neutralize(quote)) is not None


def verbatim_span(text: str, quote: str) -> tuple[int, int] | None:
    """``find_span``, at once where the words stand there to the letter."""
    at = text.find(quote)
    end = at + len(quote)
    whole = at >= 0 and not text[max(0, at - 1) : at].isalnum() and not text[end : end + 1].isalnum()
    return (at, end) if quote and whole else find_span(text, quote)


# --- questions and splits --------------------------------------------------------------------------------------------


def ids_agree(rows: DatasetRows) -> Finding:
    """Ids stand once; every example asks a question of questions.jsonl, in its words and its split."""
    count = _Count()
    known = {row["id"]: row for row in rows.questions}
    repeated = {name for name, times in Counter(row["id"] for row in rows.questions).items() if times > 1}
    for row in rows.questions:
        count.see(row["id"], row["id"] not in repeated)
    seen: set[str] = set()
    for split, examples in rows.examples.items():
        for example in examples:
            asked = known.get(example.question_id)
            fits = asked is not None and asked["split"] == split and asked["question"] == example.question
            count.see(example.id, fits and example.id not in seen)
            seen.add(example.id)
    return count.finding("ids_agree", "an id stands twice, or an example is not of its question or split")


def questions_apart(rows: DatasetRows) -> Finding:
    """No dev or test question stands in train, in the same words or nearly (the measure of repeats.duplicates)."""
    train = [row["question"] for row in rows.questions if row["split"] == "train"]
    strict = [(row["id"], row["question"]) for row in rows.questions if row["split"] != "train"]
    repeats = repeated_in(train, strict)
    found = _Count(len(strict), dict.fromkeys(name for name, _ in strict if name in repeats))
    return found.finding("questions_apart", "a dev or test question stands in train, or nearly")


def repeated_in(train: Sequence[str], strict: Sequence[tuple[str, str]]) -> set[str]:
    """The ids of (id, question) pairs that ``train`` asks too: in the same words, or with a Jaccard similarity of
    content words of ``NEAR_DUPLICATE`` or more. Prefix filtering as in repeats.duplicates (Chaudhuri et al. 2006)."""
    rarity = Counter(word for question in (*train, *(q for _, q in strict)) for word in content_words(question))

    def rarest(has: frozenset[str]) -> list[str]:
        ordered = sorted(has, key=lambda word: (rarity[word], word))
        return ordered[: len(has) - ceil(NEAR_DUPLICATE * len(has)) + 1]

    exact = {tuple(words(question)) for question in train}
    by_rare_word: dict[str, list[frozenset[str]]] = defaultdict(list)
    for has in {content_words(question) for question in train}:
        for word in rarest(has):
            by_rare_word[word].append(has)

    def is_near(has: frozenset[str]) -> bool:
        alike = (other for word in rarest(has) for other in by_rare_word[word])
        return any(len(has & other) >= NEAR_DUPLICATE * len(has | other) for other in alike)

    return {name for name, question in strict if tuple(words(question)) in exact or is_near(content_words(question))}


def _strict_oracles(rows: DatasetRows) -> set[str]:
    """The oracle chunks of dev and test questions."""
    asked = {quote["chunk_id"] for row in rows.questions if row["split"] != "train" for quote in row["quotes"]}
    shown = (row for split, made in rows.examples.items() if split != "train" for row in made)
    return asked.union(*(row.oracle_ids for row in shown))


def _train_with(rows: DatasetRows, forbidden: set[str]) -> _Count:
    """Train examples that show or rest on one of these chunks."""
    count = _Count()
    for row in rows.examples.get("train", ()):
        count.see(row.id, forbidden.isdisjoint(row.context) and forbidden.isdisjoint(row.oracle_ids))
    return count


def oracles_apart(rows: DatasetRows) -> Finding:
    """No oracle of a dev or test question is an oracle or a distractor of a train example."""
    found = _train_with(rows, _strict_oracles(rows))
    return found.finding("oracles_apart", "the oracle of a dev or test question stands in a train context")


def documents_apart(rows: DatasetRows) -> Finding:
    """No other chunk of a document that a dev or test question rests on is in a train context, nor is it an oracle."""
    oracles = _strict_oracles(rows)
    documents = {rows.chunks[name].document_id for name in oracles if name in rows.chunks}
    documents.update(name for row in rows.questions if row["split"] != "train" for name in row["document_ids"])
    chunks = {chunk.id for chunk in rows.chunks.values() if chunk.document_id in documents} - oracles
    note = "a chunk of a dev or test question's document stands in a train context"
    return _train_with(rows, chunks).finding("documents_apart", note)


def near_duplicates_apart(rows: DatasetRows) -> Finding:
    """No near-duplicate of a dev or test question's oracle is an oracle or a distractor of a train example."""
    oracles = _strict_oracles(rows)
    names = list(rows.chunks) if oracles and rows.examples.get("train") else []
    groups = dict(zip(names, near_duplicates([rows.chunks[name].text for name in names]), strict=True))
    held = {groups[name] for name in oracles if name in groups}
    alike = {name for name, group in groups.items() if group in held} - oracles
    note = "a chunk that says nearly the words of a dev or test question's oracle stands in a train context"
    return _train_with(rows, alike).finding("near_duplicates_apart", note)


# --- what chance should have given ---------------------------------------------------------------------------------


def oracle_share(rows: DatasetRows) -> Finding:
    """The share of examples with their oracle is the recipe's ``oracle_fraction``, up to chance (exact binomial)."""
    from scipy.stats import binomtest

    answerable = [row for row in rows.all_examples() if row.oracle_ids]
    here = sum(row.oracle_present for row in answerable)
    if rows.oracle_fraction is None or not answerable:
        return Finding("oracle_share", True, len(answerable), 0, note="the recipe states no oracle_fraction")
    p = float(binomtest(here, len(answerable), rows.oracle_fraction).pvalue)
    note = f"{here / len(answerable):.4f} of the examples hold their oracle, the recipe says {rows.oracle_fraction}"
    return Finding("oracle_share", p >= _CHANCE, len(answerable), int(p < _CHANCE), note=f"{note} (p = {p:.2g})")


def oracle_positions(rows: DatasetRows) -> Finding:
    """Oracles stand in every place of a context equally often, up to chance (Pearson's chi-square over the places of
    each size of context). An oracle counts once a context, however many questions of the group rest on it."""
    from scipy.stats import chi2

    placed: dict[int, Counter[int]] = defaultdict(Counter)
    for size, place in _places(rows):
        placed[size][place] += 1
    tested = {size: counts for size, counts in placed.items() if counts.total() >= _LEAST_EXPECTED * size}
    statistic, freedom = 0.0, 0
    for size, counts in tested.items():
        expected = counts.total() / size
        statistic += sum((counts[place] - expected) ** 2 / expected for place in range(size))
        freedom += size - 1
    p = float(chi2.sf(statistic, freedom)) if freedom else 1.0
    total = sum(counts.total() for counts in tested.values())
    note = (
        f"chi-square {statistic:.1f} with {freedom} degrees of freedom (p = {p:.2g})" if freedom else "too few to tell"
    )
    return Finding("oracle_positions", p >= _CHANCE, total, int(p < _CHANCE), note=note)


def _places(rows: DatasetRows) -> Iterator[tuple[int, int]]:
    """(size of the context, place of an oracle in it from 0)."""
    seen: set[tuple[str, str, str]] = set()
    for split, examples in rows.examples.items():
        for row in examples:
            for place, name in enumerate(row.context):
                if name in row.oracle_ids and (split, row.group, name) not in seen:
                    seen.add((split, row.group, name))
                    yield len(row.context), place


PROPERTIES: tuple[Callable[[DatasetRows], Finding], ...] = (
    chunks_known, contexts_without_repeats, oracles_as_stated, groups_share_context, targets_parse,
    refusals_in_place, target_quotes_verbatim, question_quotes_verbatim, ids_agree, questions_apart, oracles_apart,
    documents_apart, near_duplicates_apart, oracle_share, oracle_positions,
)  # fmt: skip
