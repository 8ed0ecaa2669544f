"""Questions that pass the quality gate: from a teacher, or from existing rows.

Each stage asks all that it has to ask before the next begins, and reads the replies in the order of the questions,
whatever order they came in. One question on its way, as a row of the scratch file ``candidates.spool``::

    {"id": "teacher-3f0a...", "question": "What is the first dose of Corvalexin?", "kind": "factual",
     "chunk_ids": ["formulary/corvalexin.md#0"], "candidate": null}
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from raft.artifacts import digest
from raft.dataset.answers import (
    answer_messages,
    candidate_answer,
    read_teacher_answer,
    reasoning_faults,
    reasoning_messages,
    unanswerable,
    with_reasoning,
)
from raft.dataset.candidates import Candidate, answer_candidates, opening_of
from raft.dataset.complaints import complaint
from raft.dataset.gate import Gate
from raft.dataset.grounding import GroundedQuestion, ground
from raft.dataset.near import NearMisses, SearchableIndex
from raft.dataset.quality import opening_faults, reply_faults
from raft.dataset.question_replies import parse_question, parse_questions
from raft.dataset.questions import (
    QUESTIONS_SCHEMA,
    PromptName,
    QuestionPrompt,
    cloze_messages,
    load_prompts,
    question_messages,
)
from raft.dataset.repeats import duplicates
from raft.dataset.support import same_answer
from raft.dataset.teacher import Progress, Prompt, Teacher, unusable
from raft.llm.chat import ChatReply
from raft.prompts import Message, build_messages, parse_answer
from raft.records import Chunk, QaItem, QuestionType
from raft.rows import Spool

LEAST_CHUNK_WORDS = 12  # nothing worth asking stands in less
CANDIDATES = "candidates.spool"
REFUSED_ONCE = "refused_once.spool"
_PAIRED: tuple[QuestionType, ...] = ("multihop", "comparison")
_PARTNER_HITS = 8  # looked at for a chunk to ask about together with another one
_REFUSAL_CHUNKS = 4  # an unanswerable question must be refused over so many of the retriever's best
_QUERIES_AT_ONCE = 256
_REMEMBERED_CHUNKS = 256


@dataclass(frozen=True)
class QuestionPlan:
    """What is asked of the teacher (config_generate.QuestionsRecipe)."""

    per_chunk: int
    types: Mapping[QuestionType, float]
    language: str | None
    prompts: Path | None
    structured: bool
    style: str
    seed: int
    reserved: frozenset[str] = frozenset()  # documents that nothing is asked about

    @cached_property
    def by_kind(self) -> Mapping[PromptName, QuestionPrompt]:
        return load_prompts(self.prompts)

    def kind_of(self, chunk_id: str) -> QuestionType:
        """The type of question asked about a chunk, drawn by a hash of the seed and the chunk."""
        at = int(digest([self.seed, "kind", chunk_id])[:13], 16) / 16**13 * sum(self.types.values())
        for kind, share in self.types.items():
            at -= share
            if at < 0:
                return kind
        return next(kind for kind, share in self.types.items() if share)


def chosen_chunks(chunks: Sequence[Chunk], most: int | None, seed: int, without: Mapping[str, Any]) -> list[str]:
    """The ids of the chunks to ask about, in their order: those long enough, of no document that is in ``without``,
    and a seeded draw when there are more than ``most``."""
    long = [
        chunk.id
        for chunk in chunks
        if len(chunk.text.split()) >= LEAST_CHUNK_WORDS and chunk.document_id not in without
    ]
    if most is None or len(long) <= most:
        return long
    drawn = set(heapq.nsmallest(most, long, key=lambda name: digest([seed, name])))
    return [name for name in long if name in drawn]


def from_teacher(
    chunk_ids: Sequence[str],
    plan: QuestionPlan,
    index: SearchableIndex,
    teacher: Teacher,
    gate: Gate,
    misses: NearMisses,
    progress: Progress,
) -> None:
    """Put through the gate what the teacher asks about the chunks and answers from them."""
    with contextlib.closing(Spool(gate.folder / CANDIDATES)) as spool:
        asking = _Asking(plan, index, teacher, gate, spool, progress)
        if plan.style == "answer_first":
            asking.clozes(chunk_ids)
        else:
            asking.questions(chunk_ids)
        asking.answers(misses)


class _Asking:
    """The two stages of one run: questions about chunks, then their answers."""

    def __init__(
        self, plan: QuestionPlan, index: SearchableIndex, teacher: Teacher, gate: Gate, spool: Spool, progress: Progress
    ) -> None:
        self._plan, self._index, self._teacher = plan, index, teacher
        self._chunk = lru_cache(maxsize=_REMEMBERED_CHUNKS)(index.chunk)  # a chunk's questions follow one another
        self._gate, self._spool, self._progress = gate, spool, progress

    # --- questions -------------------------------------------------------------------------------------------------

    def questions(self, chunk_ids: Sequence[str]) -> None:
        """Ask for questions about each chunk, or about a chunk and its partner."""
        partners = self._partners([name for name in chunk_ids if self._plan.kind_of(name) in _PAIRED])

        def take(prompt: Prompt, reply: ChatReply) -> bool:
            found = parse_questions(reply.text, self._plan.per_chunk) if reply.error is None else []
            kind, names = prompt.about
            return self._take_questions(prompt.name, reply, kind, names, [(question, None) for question in found])

        self._teacher.ask("questions", self._wishes(chunk_ids, partners), len(chunk_ids), self._progress, take)

    def _wishes(self, chunk_ids: Sequence[str], partners: Mapping[str, str]) -> Iterator[Prompt]:
        """What is asked about each chunk; ``about`` is the type of question, and the chunks' ids."""
        for name in chunk_ids:
            kind = self._plan.kind_of(name)
            if kind in _PAIRED and name not in partners:
                kind = "factual"  # a store of one chunk has nothing to compare it with
            names = [name, *([partners[name]] if kind in _PAIRED else [])]
            messages = question_messages(
                self._plan.by_kind[kind],
                [self._chunk(each) for each in names],
                self._plan.per_chunk,
                self._plan.language,
                self._plan.structured,
            )
            yield Prompt(name, messages, QUESTIONS_SCHEMA if self._plan.structured else None, (kind, names))

    def _partners(self, chunk_ids: Sequence[str]) -> dict[str, str]:
        """Chunk id -> the chunk to ask about beside it: the nearest of its document, the one that follows it there, or
        else the nearest of all. (Two documents that share a question can no longer be split between train and test.)"""
        partners = {}
        for at in range(0, len(chunk_ids), _QUERIES_AT_ONCE):
            batch = [self._chunk(name) for name in chunk_ids[at : at + _QUERIES_AT_ONCE]]
            hits = self._index.search([chunk.text for chunk in batch], _PARTNER_HITS)
            for n, (chunk, row) in enumerate(zip(batch, hits, strict=True)):
                around = [*batch[n + 1 : n + 2], *batch[max(0, n - 1) : n]]
                found = (hit.chunk for hit in row if hit.chunk.text != chunk.text)
                near = [each for each in found if each.document_id not in self._plan.reserved]
                beside = [each for each in (*near, *around) if each.document_id == chunk.document_id]
                if best := [*beside, *near]:
                    partners[chunk.id] = best[0].id
        return partners

    def clozes(self, chunk_ids: Sequence[str]) -> None:
        """Ask for the question to each answer that the rules choose, and once more where the gate's rules refuse it for
        something that the teacher can mend."""
        total = sum(1 for _ in self._holes(chunk_ids))
        with contextlib.closing(Spool(self._gate.folder / REFUSED_ONCE)) as refused:
            self._teacher.ask(
                "questions", self._holes(chunk_ids), total, self._progress, partial(self._take_cloze, refused)
            )
            self._teacher.ask(
                "questions again", self._corrections(refused), len(refused), self._progress,
                partial(self._take_cloze, None), optional=True,
            )  # fmt: skip

    def _take_cloze(self, refused: Spool | None, prompt: Prompt, reply: ChatReply) -> bool:
        """Keep the question when the rules find nothing wrong with it; else put it into ``refused``, for the teacher to
        try again, or refuse it for good where it has."""
        chunk_id, candidate = prompt.about
        chunk = self._chunk(chunk_id)
        kind: QuestionType = "numeric" if candidate.kind == "number" else "factual"
        question = None if unusable(reply) else parse_question(reply.text)
        if question is None:
            return self._take_questions(prompt.name, reply, kind, [chunk_id], [])
        item = candidate_answer(prompt.name, question, chunk, candidate)
        opening = self._opening(chunk, candidate)
        faults = [*self._gate.rules.of_pair(item, [chunk]), *opening_faults(question, opening)]
        said = complaint(item, chunk, faults, opening)
        if refused is not None and said:
            refused.append({"name": prompt.name, "chunk_id": chunk_id, "candidate": asdict(candidate), "said": said})
            return False
        if faults:
            self._gate.refuse(prompt.name, question, item.answer, faults, kind=kind, document_ids=item.document_ids)
            return False
        return self._take_questions(prompt.name, reply, kind, [chunk_id], [(question, asdict(candidate))])

    def _corrections(self, refused: Spool) -> Iterator[Prompt]:
        """What is asked once more; ``about`` as in ``_holes``."""
        for row in refused:
            chunk, candidate = self._chunk(row["chunk_id"]), _candidate_of(row["candidate"])
            messages = self._cloze(chunk, candidate, row["said"])
            yield Prompt(f"{row['name']}/again", messages, about=(row["chunk_id"], candidate))

    def _cloze(self, chunk: Chunk, candidate: Candidate, complaint: str = "") -> tuple[Message, ...]:
        prompt, opening = self._plan.by_kind["answer_first"], self._opening(chunk, candidate)
        return cloze_messages(prompt, chunk, candidate, opening, self._plan.language, complaint)

    def _holes(self, chunk_ids: Sequence[str]) -> Iterator[Prompt]:
        """What is asked about each chosen answer; ``about`` is the chunk's id, and the answer."""
        for name in chunk_ids:
            chunk = self._chunk(name)
            for n, candidate in enumerate(answer_candidates(chunk, self._plan.per_chunk, self._plan.seed)):
                yield Prompt(f"{name}/{n}", self._cloze(chunk, candidate), about=(name, candidate))

    def _opening(self, chunk: Chunk, candidate: Candidate) -> str:
        """The words that the question is to ask with; the rules know those of English alone."""
        return opening_of(chunk, candidate) if (self._plan.language or "English").casefold() == "english" else ""

    def _take_questions(
        self,
        name: str,
        reply: ChatReply,
        kind: QuestionType,
        ids: Sequence[str],
        found: Sequence[tuple[str, dict[str, Any] | None]],
    ) -> bool:
        """Keep the questions of a reply that are of use; says whether there was any."""
        documents = list(dict.fromkeys(self._chunk(each).document_id for each in ids))
        kept = len(self._spool)
        if not found:
            reasons = unusable(reply) or ["no_question"]
            self._gate.refuse(name, "", "", reasons, reply.error or reply.text, kind=kind, document_ids=documents)
        for question, candidate in found:
            key = f"teacher-{digest([*ids, question, *([candidate] if candidate else [])])[:16]}"
            if faults := self._gate.rules.of_question(question):
                self._gate.refuse(key, question, "", faults, kind=kind, document_ids=documents)
            else:
                self._spool.append(
                    {"id": key, "question": question, "kind": kind, "chunk_ids": [*ids], "candidate": candidate}
                )
        return len(self._spool) > kept

    # --- answers ---------------------------------------------------------------------------------------------------

    def answers(self, misses: NearMisses) -> None:
        """Ask for the answer to each question that repeats none before it; its near misses are searched meanwhile."""
        accepted = [(item.id, item.question) for item in self._gate]
        repeats = duplicates([*accepted, *((row["id"], row["question"]) for row in self._spool)])
        kept = []
        for at, row in enumerate(self._spool):
            if row["id"] in repeats:
                documents = dict.fromkeys(chunk.document_id for chunk in self._chunks(row, None))
                self._gate.refuse(
                    row["id"], row["question"], "", [repeats[row["id"]]], kind=row["kind"], document_ids=[*documents]
                )
            else:
                kept.append(at)
        shown = self._shown([at for at in kept if self._spool[at]["kind"] == "unanswerable"])

        def prompts() -> Iterator[Prompt]:
            for at in kept:
                row = self._spool[at]
                yield Prompt(str(at), self._answer_messages(row, self._chunks(row, shown.get(at))), about=at)

        def take(prompt: Prompt, reply: ChatReply) -> bool:
            row, among = self._spool[prompt.about], shown.get(prompt.about)
            self._gate.documents.update(chunk.document_id for chunk in self._chunks(row, among))
            item, faults = self._judged(row, reply, among)
            self._gate.judge(item, faults, reply.error or reply.text)
            return not faults

        misses.begin([(row["id"], row["question"]) for row in map(self._spool.__getitem__, kept)])
        self._teacher.ask("answers", prompts(), len(kept), self._progress, take)

    def _chunks(self, row: Mapping[str, Any], shown: Sequence[str] | None) -> list[Chunk]:
        return [self._chunk(name) for name in shown or row["chunk_ids"]]

    def _answer_messages(self, row: Mapping[str, Any], chunks: Sequence[Chunk]) -> tuple[Message, ...]:
        if row["candidate"] is not None:  # the answer is known: what counts is whether the question leads back to it
            return tuple(build_messages(row["question"], chunks, short=True))
        return answer_messages(row["question"], chunks, self._plan.by_kind[row["kind"]].answer_hint)

    def _shown(self, rows: Sequence[int]) -> dict[int, list[str]]:
        """Row -> the chunks over which an unanswerable question must be refused: its own and the retriever's best."""
        shown = {}
        for start in range(0, len(rows), _QUERIES_AT_ONCE):
            batch = [(at, self._spool[at]) for at in rows[start : start + _QUERIES_AT_ONCE]]
            hits = self._index.search([row["question"] for _, row in batch], _REFUSAL_CHUNKS)
            for (at, row), found in zip(batch, hits, strict=True):
                shown[at] = list(dict.fromkeys([*row["chunk_ids"], *(hit.chunk.id for hit in found)]))
        return shown

    def _judged(
        self, row: Mapping[str, Any], reply: ChatReply, shown: Sequence[str] | None
    ) -> tuple[GroundedQuestion, list[str]]:
        """The question as the reply answers it, and what is wrong with that."""
        chunks = self._chunks(row, shown)
        if row["kind"] == "unanswerable":
            item = unanswerable(row["id"], row["question"], chunks[0])
            refused = reply.error is None and parse_answer(reply.text).abstained
            return item, unusable(reply) or ([] if refused else ["unanswerable_is_answered"])
        if row["candidate"] is not None:
            candidate = _candidate_of(row["candidate"])
            item = candidate_answer(row["id"], row["question"], chunks[0], candidate)
            again = same_answer(item.answer, parse_answer(reply.text).final, item.answer_type)
            faults = unusable(reply) or ([] if again else ["oracle_does_not_answer"])
        else:
            item, said = read_teacher_answer(row["id"], row["question"], reply.text, chunks, row["kind"])
            faults = unusable(reply) or reply_faults(said, len(item.quotes))
        if not unusable(reply):
            faults += self._gate.rules.of_answer(item, {chunk.id: chunk.text for chunk in chunks})
            faults += self._gate.rules.of_pair(item, chunks)
        return item, list(dict.fromkeys(faults))


def _candidate_of(row: Mapping[str, Any]) -> Candidate:
    return Candidate(**{**row, **{name: tuple(row[name]) for name in ("sentence", "answer")}})


def from_rows(rows: Sequence[QaItem], index: SearchableIndex, gate: Gate) -> None:
    """Put through the gate the existing questions whose evidence stands in the index's chunks."""
    gold = {name for row in rows for name in (*row.gold_document_ids, *(part.document_id for part in row.evidence))}
    chunks: dict[str, list[Chunk]] = {}
    for chunk in index.chunks:
        if chunk.document_id in gold:
            chunks.setdefault(chunk.document_id, []).append(chunk)
    for row in rows:
        named = {*row.gold_document_ids, *(evidence.document_id for evidence in row.evidence)}
        item = ground(row, {name: index.document(name) for name in named if name in chunks}, chunks)
        oracles = {name: index.chunk(name).text for name in item.oracle_ids}
        gate.judge(item, [*gate.rules.of_question(item.question), *gate.rules.of_answer(item, oracles)])
    gate.refuse_where(duplicates([(item.id, item.question) for item in gate]))


def explain(gate: Gate, index: SearchableIndex, teacher: Teacher, progress: Progress) -> None:
    """Let the teacher write the reasoning of the accepted questions. Where its words do not pass, the question
    stays with the reasoning it had (``reasoning_source`` says which), and the refusal is recorded."""

    def prompt_of(item: GroundedQuestion) -> Prompt:
        return Prompt(item.id, reasoning_messages(item, oracles_of(item)))

    def oracles_of(item: GroundedQuestion) -> list[Chunk]:
        return [index.chunk(name) for name in item.oracle_ids]

    def explained(item: GroundedQuestion) -> GroundedQuestion:
        if not item.oracle_ids:
            return item
        reply = teacher.reply(prompt_of(item))
        faults = unusable(reply) or reasoning_faults(reply.text, item, oracles_of(item))
        if not faults:
            return with_reasoning(item, reply.text)
        gate.refuse(
            item.id, item.question, item.answer, faults, reply.error or reply.text,
            document_ids=item.document_ids, counted=False,
        )  # fmt: skip
        return item

    total = sum(bool(item.oracle_ids) for item in gate.bases)
    teacher.ask("reasoning", (prompt_of(item) for item in gate if item.oracle_ids), total, progress)
    gate.sieve(explained)
