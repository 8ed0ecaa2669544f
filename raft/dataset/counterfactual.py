"""Near misses made of an oracle: the same words about something else, with another fact. Rules alone, no model.

For "What is the first intravenous dose of Belantolol in acute stroke?" ("12 mg")::

    Belantolol. For high pressure in acute stroke, give Belantolol 12 mg intravenously over 2 minutes.
    Sorantolol. For high pressure in acute stroke, give Sorantolol 15 mg intravenously over 2 minutes.

The subject that the question names becomes another one of the corpus, of the same kind where there is one; what holds
the answer becomes a near value of the same form, or another answer of the same type (the substitutions of Longpre et
al. 2021, arXiv 2109.05052). Both are changed: with the subject alone the answer would still stand there, with the
fact alone the text would be a second, false answer. An edit that fails a check is dropped: no edit at all is better
than one that answers.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from raft.corpus.spans import find_span, normalize
from raft.dataset.facts import changed_numbers, negated, numbers
from raft.dataset.grounding import CLOSED_TYPES, GroundedQuestion, content_words, words
from raft.records import AnswerType, Chunk

LEAST_ALIKE = 0.6  # share of the oracle's words that its edit keeps
_SPEAKS_OF = 0.6  # share of a question's content words
_LOOKED_AT = 64  # siblings
_MOST_NAME_WORDS = 8

_NAME = re.compile(r"[A-Z][\w'’&-]*\w(?: (?:(?:of|and|the|for) )?(?:[A-Z][\w'’&-]*\w|\d{1,4}\b))*")
_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)
_NO_NAMES = frozenset((
    "a", "act", "after", "all", "an", "and", "annex", "any", "appendix", "april", "article", "at", "august", "before",
    "between", "by", "call", "chapter", "clause", "december", "do", "during", "each", "every", "february", "figure",
    "for", "friday", "from", "give", "how", "if", "in", "it", "january", "july", "june", "level", "march", "may",
    "monday", "no", "note", "november", "october", "on", "order", "page", "paragraph", "part", "regulation",
    "regulations", "rule", "rules", "saturday", "schedule", "section", "september", "step", "sunday", "table", "take",
    "the", "these", "this", "thursday", "to", "tuesday", "under", "use", "version", "wednesday", "what", "when",
    "where", "which", "who", "with", "yes",
))  # fmt: skip
_PAIRS = (
    ("adult", "child"), ("adults", "children"), ("oral", "intravenous"), ("orally", "intravenously"),
    ("inpatient", "outpatient"), ("inpatients", "outpatients"), ("men", "women"), ("buyer", "seller"),
    ("employer", "employee"), ("landlord", "tenant"), ("lender", "borrower"), ("supplier", "customer"),
    ("residential", "commercial"), ("maximum", "minimum"), ("highest", "lowest"), ("largest", "smallest"),
    ("longest", "shortest"), ("standard", "special"),
)  # fmt: skip
_GENERAL = frozenset((
    "agreement", "annex", "between", "current", "document", "edition", "formulary", "guidance", "guide", "hospital",
    "injection", "monograph", "notes", "pathway", "patient", "patients", "policy", "practice", "procedure", "protocol",
    "regulations", "rules", "sample", "section", "suspected", "tablets", "version", "wards", "within", "outside",
))  # fmt: skip
_SCOPES = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}

_NUMBERS = {one: (other,) for pair in (("adult", "adults"), ("child", "children")) for one, other in (pair, pair[::-1])}
_WORD = "word"
_Kind = tuple[str, bool, str]  # folder or "", whether a document is named so, shape


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a corpus speaks of. ``documents`` counts the documents of each name; ``siblings`` lists the names and
    topics of a kind, ``answers`` the reference answers of a type and a number of words."""

    documents: Mapping[str, int]
    siblings: Mapping[_Kind, Sequence[str]]
    answers: Mapping[tuple[AnswerType, int], Sequence[str]]


def vocabulary_of(chunks: Iterable[Chunk], items: Iterable[GroundedQuestion] = ()) -> Vocabulary:
    """The names of a corpus, and the answers of its questions, as what may stand in for others of their kind."""
    found: dict[str, set[str]] = defaultdict(set)  # name -> documents
    kinds: dict[_Kind, set[str]] = defaultdict(set)
    common: set[str] = set()  # single words that somewhere stand in small letters: no names
    for chunk in chunks:
        common.update(re.findall(r"\b[a-z]\w+", chunk.text))
        for name, is_title in (*((n, True) for n in _of_title(chunk)), *((n, False) for n in names(chunk.text))):
            found[name].add(chunk.document_id)
            for kind in _kinds(name, chunk.document_id, is_title):
                kinds[kind].add(name)
        for word in _title_words(chunk):
            for kind in _word_kinds(chunk.document_id):
                kinds[kind].add(word)
    kept = {name: len(documents) for name, documents in found.items() if name.lower() not in common or " " in name}
    answers: dict[tuple[AnswerType, int], set[str]] = defaultdict(set)
    for item in items:
        answers[item.answer_type, len(item.answer.split())].add(item.answer)
    siblings = {k: sorted(n for n in group if n in kept or k[2] == _WORD) for k, group in kinds.items()}
    return Vocabulary(kept, siblings, {key: sorted(group) for key, group in answers.items()})


def names(text: str) -> list[str]:
    """Runs of capitalised words, as they stand, without repeats: ``Sorrel Hospital``, ``Companies Act 2016``. A lone
    word at the start of a sentence or line is none."""
    found: dict[str, None] = {}
    for match in _NAME.finditer(text):
        parts = match.group().split()
        while parts and parts[0].lower() in _NO_NAMES:
            parts = parts[1:]
        opens = len(parts) == len(match.group().split()) and _opens(text, match.start())
        says = [part for part in parts if not part.isdigit() and part.lower() not in _NO_NAMES]
        if says and len(parts) <= _MOST_NAME_WORDS and not (opens and len(parts) == 1):
            found[" ".join(parts)] = None
    return list(found)


def _opens(text: str, at: int) -> bool:
    before = text[max(0, at - 12) : at].rstrip(" \t*#\"'(-\u2018\u201c")
    return not before or before[-1] in ".!?:;|\n"


def _of_title(chunk: Chunk) -> list[str]:
    """The title, when it is short, and its parts: names, and the words before a colon, comma or bracket."""
    title = " ".join(chunk.title.split())
    parts = [title, re.split(r"\s*[:;,(\u2013\u2014]", title)[0], *_NAME.findall(title)]
    return [part for part in dict.fromkeys(parts) if part and len(part.split()) <= 4 and not part.isdigit()]


def _kinds(name: str, document_id: str, is_title: bool) -> list[_Kind]:
    """The kinds that a name belongs to, the narrowest first."""
    parts = name.split()
    if len(parts) == 1:
        shapes = ["A" if name.isupper() or not name.isalpha() else "a"]
    else:
        ending = " ".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
        shapes = [re.sub(r"\d", "#", ending), f"{min(len(parts), 4)} words"]
    folder = document_id.rpartition("/")[0]
    titles = (True, False) if is_title else (False,)
    return [(where, title, shape) for shape in shapes for where in dict.fromkeys((folder, "")) for title in titles]


def subjects_of(item: GroundedQuestion, chunk: Chunk, vocabulary: Vocabulary) -> list[str]:
    """What the question asks about, the most telling first: names, the rarest in the corpus first; then a scope
    (adults, oral); then words of the title. All stand in the question, and in a quote, the title or a heading: a name
    that the chunk only mentions elsewhere could change without making it speak of something else."""
    about = "\n".join((chunk.title, *chunk.headings, *(q.text for q in item.quotes if q.chunk_id == chunk.id)))
    known = (*_of_title(chunk), *names(_shown(chunk)), *names(item.question))
    named = {n for n in known if n in vocabulary.documents and _has(item.question, n) and _has(about, n)}
    roots = [n for n in named if not any(other != n and _has(n, other) for other in named)]
    roots.sort(key=lambda name: (vocabulary.documents[name], -len(name), name))
    asked = set(words(item.question))
    scopes = [word for word in _SCOPES if _has(about, word) and asked & {word, *_NUMBERS.get(word, ())}]
    return list(dict.fromkeys((*roots, *scopes, *_topics(item.question, chunk))))


def _topics(question: str, chunk: Chunk) -> list[str]:
    """The longest run of words that the title shares with the question, two words or more; then single words
    that the chunk's text has too."""
    title = re.findall(r"\w[\w'-]*", chunk.title)
    meant = content_words(chunk.title)
    runs = [
        " ".join(title[start:end])
        for start in range(len(title))
        for end in range(start + 2, min(len(title), start + 4) + 1)
        if title[start].lower() in meant and title[end - 1].lower() in meant
    ]
    shared = sorted((run for run in runs if _has(question, run) and _has(chunk.title, run)), key=len, reverse=True)
    return [*shared[:1], *(word for word in _title_words(chunk) if _has(question, word) and _has(chunk.text, word))]


def _title_words(chunk: Chunk) -> list[str]:
    """What a title is about, one word at a time and in small letters: no general words, no scopes."""
    found = re.findall(r"[^\W\d_]{5,}", chunk.title.lower())
    return [word for word in dict.fromkeys(found) if word not in _GENERAL and word not in _SCOPES]


def _word_kinds(document_id: str) -> list[_Kind]:
    return [(where, True, _WORD) for where in dict.fromkeys((document_id.rpartition("/")[0], ""))]


def edits_of(chunk: Chunk, item: GroundedQuestion, vocabulary: Vocabulary, *, seed: int, most: int) -> list[Chunk]:
    """At most ``most`` different edits of an oracle chunk of the question; fewer, or none, where no more are sound."""
    found: dict[str, Chunk] = {}
    for n in range(2 * most):
        edit = edit_of(chunk, item, vocabulary, seed=seed, n=n)
        if edit is not None and len(found) < most:
            found.setdefault(edit.text, replace(edit, id=f"{chunk.id}~edit{len(found)}"))
    return list(found.values())


def edit_of(chunk: Chunk, item: GroundedQuestion, vocabulary: Vocabulary, *, seed: int, n: int = 0) -> Chunk | None:
    """Edit ``n`` of an oracle chunk of the question, with the id ``<chunk id>~edit<n>``; None where none is sound.

    It names another subject than the question (in title and headings too), holds neither the answer nor an alias at
    word boundaries nor any quote, and keeps at least ``LEAST_ALIKE`` of the oracle's words. Answers out of a closed set
    stand in many a text: there a quote that says the opposite is enough. Document and offsets stay the oracle's own.
    """
    rng = random.Random(hashlib.sha256(f"{seed}/{n}/{item.id}/{chunk.id}".encode()).hexdigest())
    for subject in subjects_of(item, chunk, vocabulary):
        sibling = _sibling(subject, chunk, item, vocabulary, rng)
        change = other_fact(chunk, item, vocabulary, rng) if sibling is not None else None
        if sibling is None or change is None:
            continue
        edit = _renamed(replace(chunk, id=f"{chunk.id}~edit{n}", text=change(chunk.text)), subject, sibling)
        for other in _NUMBERS.get(subject, ()):
            edit = _renamed(edit, other, _SCOPES[other])
        if _is_sound(edit, chunk, item, subject):
            return edit
    return None


def speaks_of(question: str, chunk: Chunk) -> bool:
    """Whether a chunk seems to speak of what a question asks: its names, scopes and numbers all stand there, and most
    of its content words. An edit that does would be a second, false answer to that question."""
    shown, asked = _shown(chunk), content_words(question)
    telling = [*names(question), *(word for word in asked if word in _SCOPES or word[0].isdigit())]
    return all(_has(shown, each) for each in telling) and len(asked & set(words(shown))) >= _SPEAKS_OF * len(asked)


def _shown(chunk: Chunk) -> str:
    return "\n".join((chunk.title, *chunk.headings, chunk.text))


def _has(text: str, passage: str) -> bool:
    """Whether the passage stands in the text at word boundaries; most do not, and that is told cheaply."""
    return _normal(passage) in _normal(text) and find_span(text, passage) is not None


_normal = lru_cache(maxsize=512)(normalize)


def _sibling(
    subject: str, chunk: Chunk, item: GroundedQuestion, vocabulary: Vocabulary, rng: random.Random
) -> str | None:
    """Another subject of the same kind, of which neither chunk nor question nor answer speaks."""
    if subject.lower() in _SCOPES:
        return _SCOPES[subject.lower()]
    taken = normalize("\n".join((_shown(chunk), item.question, item.answer, *item.aliases)))
    is_title = subject in _of_title(chunk) or _has(chunk.title, subject)
    as_word = subject in _title_words(chunk)
    for kind in _word_kinds(chunk.document_id) if as_word else _kinds(subject, chunk.document_id, is_title):
        group = vocabulary.siblings.get(kind, ())
        looked_at = rng.sample(group, min(len(group), _LOOKED_AT))
        found = next((name for name in looked_at if _normal(name) not in taken and not _has(name, subject)), None)
        if found is not None:
            return found
    return None


def other_fact(
    chunk: Chunk, item: GroundedQuestion, vocabulary: Vocabulary, rng: random.Random
) -> Callable[[str], str] | None:
    """What turns a text into one with another answer; None where no rule can."""
    if item.answer_type in CLOSED_TYPES:
        return lambda text: _with_quotes_negated(text, item)
    if set(numbers(item.answer)) & set(numbers(chunk.text)):
        return changed_numbers(item.answer, item.question, rng)
    stands = [core for each in (item.answer, *item.aliases) if _has(chunk.text, core := _ARTICLE.sub("", each))]
    other = _other_answer(stands[0], item, chunk, vocabulary, rng) if stands else None
    return None if other is None else lambda text: _replaced_all(text, stands, other)


def _with_quotes_negated(text: str, item: GroundedQuestion) -> str:
    for quote in item.quotes:
        span = find_span(text, quote.text)
        if span is not None:
            text = text[: span[0]] + negated(text[span[0] : span[1]]) + text[span[1] :]
    return text


def _other_answer(
    answer: str, item: GroundedQuestion, chunk: Chunk, vocabulary: Vocabulary, rng: random.Random
) -> str | None:
    """A name of the answer's kind, or another question's answer of the same type, form and about the same length."""
    if answer in vocabulary.documents or names(f"by {answer}") == [answer]:
        return _sibling(answer, chunk, item, vocabulary, rng)
    meant, shown = content_words(answer), _shown(chunk)
    for length in _nearest(len(item.answer.split())):
        group = vocabulary.answers.get((item.answer_type, length), ())
        for other in (_ARTICLE.sub("", each) for each in rng.sample(group, min(len(group), _LOOKED_AT))):
            if _form(other) == _form(answer) and not (content_words(other) & meant or _has(shown, other)):
                return other
    return None


def _form(answer: str) -> tuple[bool, bool]:
    return bool(numbers(answer)), any(word[0].isupper() for word in answer.split())


def _nearest(length: int) -> Iterator[int]:
    yield length
    for step in range(1, max(2, length // 2 + 1)):
        yield from (length + step, length - step)


def _replaced_all(text: str, passages: Sequence[str], other: str) -> str:
    for passage in sorted(passages, key=len, reverse=True):
        pattern = _pattern(passage)
        text = pattern.sub(lambda match: _cased(other, match.group()), text)
    return text


def _renamed(chunk: Chunk, subject: str, sibling: str) -> Chunk:
    """The chunk with every mention of ``subject`` turned into ``sibling``, and "a" into "an" where that asks for it."""
    pattern = re.compile(rf"(?:\b(?P<article>an?)(?P<space>\s+))?(?P<name>{_pattern(subject).pattern})", re.IGNORECASE)

    def other(match: re.Match[str]) -> str:
        name = _cased(sibling, match["name"])
        if not match["article"]:
            return name
        article = match["article"][0] + ("n" if name[0].lower() in "aeiou" else "")
        return article + match["space"] + name

    def renamed(text: str) -> str:
        return pattern.sub(other, text)

    headings = tuple(map(renamed, chunk.headings))
    return replace(chunk, text=renamed(chunk.text), title=renamed(chunk.title), headings=headings)


def _pattern(passage: str) -> re.Pattern[str]:
    """The passage at word boundaries, with any white space between its words."""
    spaced = r"\s+".join(map(re.escape, passage.split()))
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE)


def _cased(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[:1].isupper() else word


def _is_sound(edit: Chunk, chunk: Chunk, item: GroundedQuestion, subject: str) -> bool:
    shown = _shown(edit)
    closed = item.answer_type in CLOSED_TYPES
    answers = () if closed else (item.answer, *item.aliases)
    return (
        not _has(shown, subject)
        and not any(_has(shown, answer) for answer in answers)
        and not any(normalize(quote.text) in normalize(edit.text) for quote in item.quotes)
        and edit.text != chunk.text
        and likeness(chunk.text, edit.text) >= LEAST_ALIKE
    )


def likeness(one: str, other: str) -> float:
    """The share of the words of the longer text that both have, each as often as it stands there: 0 to 1."""
    first, second = Counter(words(one)), Counter(words(other))
    return (first & second).total() / max(first.total(), second.total(), 1)
