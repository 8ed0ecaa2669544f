"""Questions that pass the quality gate: from a teacher, or from existing rows.

One row of the journal that a teacher's replies go into as they come (llm/chat.py, ChatReply)::

    {"key": "answers/teacher-3f0a.../5d1e0c...", "text": "Document [1] says ...", "prompt_tokens": 310,
     "completion_tokens": 41, "truncated": false, "error": null}
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

from raft.artifacts import digest
from raft.config import SearchMode
from raft.dataset.answers import (
    answer_messages,
    read_teacher_answer,
    reasoning_faults,
    reasoning_messages,
    with_reasoning,
)
from raft.dataset.grounding import GroundedQuestion, ground
from raft.dataset.quality import answer_faults, duplicates, question_faults, reply_faults
from raft.dataset.questions import parse_questions, question_messages
from raft.errors import EndpointError
from raft.llm.chat import ChatModel, ChatReply, ChatRequest
from raft.prompts import Message
from raft.records import Chunk, Document, Hit, QaItem
from raft.rows import Journal

LEAST_CHUNK_WORDS = 12  # nothing worth asking stands in less
_FIRST_REPLIES = 20  # so many replies before failures are judged while asking

Progress = Callable[[str, int, int], None]
"""Told a stage, how much of it is done, and of how much."""


class SearchableIndex(Protocol):
    """The part of an index that a dataset is made from."""

    @property
    def chunks(self) -> Sequence[Chunk]: ...

    @property
    def fingerprint(self) -> str: ...

    def chunk(self, chunk_id: str) -> Chunk: ...

    def document(self, document_id: str) -> Document: ...

    def search(self, queries: Sequence[str], k: int, mode: SearchMode = "fused") -> list[list[Hit]]: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds of the quality gate (config.QualityRecipe)."""

    min_question_words: int
    max_question_words: int
    max_answer_words: int
    min_answer_overlap: float

    def of_question(self, question: str) -> list[str]:
        return question_faults(question, self.min_question_words, self.max_question_words)

    def of_answer(self, item: GroundedQuestion, oracles: Mapping[str, str]) -> list[str]:
        return answer_faults(item, oracles, self.max_answer_words, self.min_answer_overlap)


@dataclass
class Gate:
    """The questions accepted so far, in a fixed order, and the rows of ``rejected.jsonl``."""

    accepted: list[GroundedQuestion] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def refuse(self, key: str, question: str, answer: str, reasons: Sequence[str], said: str = "") -> None:
        row = {"id": key, "question": question, "answer": answer, "reasons": list(reasons)}
        self.rejected.append(row | ({"said": said} if said else {}))

    def judge(self, item: GroundedQuestion, reasons: Sequence[str], said: str = "") -> None:
        """Accept the question when there is no reason against it."""
        if reasons:
            self.refuse(item.id, item.question, item.answer, reasons, said)
        else:
            self.accepted.append(item)

    def extend(self, other: Gate) -> None:
        """Take over what another gate decided; questions that repeat one accepted here are refused."""
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.refuse_where(duplicates([(item.id, item.question) for item in self.accepted]))

    def refuse_where(self, reasons: Mapping[str, str]) -> None:
        """Refuse those accepted questions whose id has a reason."""
        kept, self.accepted = self.accepted, []
        for item in kept:
            self.judge(item, [reasons[item.id]] if item.id in reasons else [])

    def by_rule(self) -> dict[str, int]:
        """How often each rule refused."""
        return dict(Counter(reason for row in self.rejected for reason in row["reasons"]).most_common())


class Teacher:
    """A chat model whose replies survive a crash: what the journal holds is not asked again.

    A request's key is made of its words, so a reply never answers another prompt. Failed calls are not
    journalled: a resumed run tries them again.
    """

    def __init__(self, model: ChatModel, journal: Journal, *, max_tokens: int, temperature: float, seed: int) -> None:
        self.used: list[ChatReply] = []
        self._model = model
        self._journal = journal
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed
        self._known = {row["key"]: ChatReply(**row) for row in journal.rows}

    def ask(
        self, stage: str, prompts: Iterable[tuple[str, tuple[Message, ...]]], total: int, progress: Progress
    ) -> dict[str, ChatReply]:
        """Name -> reply for ``total`` (name, prompt) pairs, failed calls among them.

        Raises EndpointError as soon as more than half of at least 20 calls have failed, or of all at the end.
        """
        names: dict[str, str] = {}
        replies: dict[str, ChatReply] = {}
        failed = 0
        # every ChatModel answers with a generator; closing it cancels what is in flight
        asking = cast(
            "Generator[ChatReply, None, None]", self._model.complete(self._new(stage, prompts, names, replies))
        )
        with contextlib.closing(asking):
            for asked, reply in enumerate(asking, 1):
                replies[names.pop(reply.key)] = reply
                if reply.error is None:
                    self._journal.append(asdict(reply))
                else:
                    failed += 1
                    if asked >= _FIRST_REPLIES:
                        self._check(failed, asked, reply.error)
                progress(stage, len(replies), total)
        errors = [reply.error for reply in replies.values() if reply.error is not None]
        if errors:
            self._check(failed, len(replies), errors[-1])
        self.used += replies.values()
        return replies

    def _new(
        self,
        stage: str,
        prompts: Iterable[tuple[str, tuple[Message, ...]]],
        names: dict[str, str],
        replies: dict[str, ChatReply],
    ) -> Iterator[ChatRequest]:
        """The requests that the journal does not answer; its replies go into ``replies``."""
        for name, messages in prompts:
            key = f"{stage}/{name}/{digest([[m.role, m.content] for m in messages])[:16]}"
            if key in self._known:
                replies[name] = self._known[key]
                continue
            names[key] = name
            yield ChatRequest(key, messages, self._max_tokens, self._temperature, self._seed)

    def _check(self, failed: int, asked: int, error: str) -> None:
        if 2 * failed > asked:
            raise EndpointError(
                f"{failed} of {asked} calls of the teacher {self._model.name} failed, the last with: {error}",
                "Mend the cause and go on with --resume: nothing that was answered is lost",
            )


def chosen_chunks(chunks: Sequence[Chunk], most: int | None, seed: int) -> list[Chunk]:
    """The chunks to ask about, in their order: those long enough, and a seeded draw when there are more than
    ``most``."""
    long = [chunk for chunk in chunks if len(chunk.text.split()) >= LEAST_CHUNK_WORDS]
    if most is None or len(long) <= most:
        return long
    drawn = {chunk.id for chunk in heapq.nsmallest(most, long, key=lambda chunk: digest([seed, chunk.id]))}
    return [chunk for chunk in long if chunk.id in drawn]


def from_teacher(chunks: Sequence[Chunk], per_chunk: int, teacher: Teacher, rules: Rules, progress: Progress) -> Gate:
    """The questions that the teacher wrote about the chunks, and answered, as far as they pass the gate."""
    gate = Gate()
    asked = _teacher_questions(chunks, per_chunk, teacher, rules, gate, progress)
    prompts = ((key, answer_messages(question, chunk)) for key, question, chunk in asked)
    replies = teacher.ask("answers", prompts, len(asked), progress)
    for key, question, chunk in asked:
        reply = replies[key]
        if faults := _unusable(reply):
            gate.refuse(key, question, "", faults, reply.error or reply.text)
            continue
        item, answer = read_teacher_answer(key, question, reply.text, chunk)
        faults = [*reply_faults(answer, len(item.quotes)), *rules.of_answer(item, {chunk.id: chunk.text})]
        gate.judge(item, list(dict.fromkeys(faults)), reply.text)
    return gate


def _unusable(reply: ChatReply) -> list[str]:
    """Why a reply is not read at all: the call failed, or its text was cut at ``max_tokens``."""
    if reply.error is not None:
        return ["teacher_failed"]
    return ["reply_cut"] if reply.truncated else []


def _teacher_questions(
    chunks: Sequence[Chunk], per_chunk: int, teacher: Teacher, rules: Rules, gate: Gate, progress: Progress
) -> list[tuple[str, str, Chunk]]:
    """(id, question, its chunk) for the well-formed questions, repeats left out before they are answered."""
    prompts = ((chunk.id, question_messages(chunk, per_chunk)) for chunk in chunks)
    replies = teacher.ask("questions", prompts, len(chunks), progress)
    found = []
    for chunk in chunks:
        reply = replies[chunk.id]
        questions = parse_questions(reply.text, per_chunk)
        if not questions:
            gate.refuse(chunk.id, "", "", _unusable(reply) or ["no_question"], reply.error or reply.text)
        for question in questions:
            key = f"teacher-{digest([chunk.id, question])[:16]}"
            faults = rules.of_question(question)
            if faults:
                gate.refuse(key, question, "", faults)
            else:
                found.append((key, question, chunk))
    repeats = duplicates([(key, question) for key, question, _ in found])
    for key, question, _ in found:
        if key in repeats:
            gate.refuse(key, question, "", [repeats[key]])
    return [asked for asked in found if asked[0] not in repeats]


def from_rows(rows: Sequence[QaItem], index: SearchableIndex, rules: Rules) -> Gate:
    """The existing questions whose evidence stands in the index's chunks and that pass the gate."""
    gate = Gate()
    chunks: dict[str, list[Chunk]] = {}
    for chunk in index.chunks:
        chunks.setdefault(chunk.document_id, []).append(chunk)
    for row in rows:
        gold = {*row.gold_document_ids, *(evidence.document_id for evidence in row.evidence)}
        item = ground(row, {name: index.document(name) for name in gold if name in chunks}, chunks)
        oracles = {name: index.chunk(name).text for name in item.oracle_ids}
        gate.judge(item, [*rules.of_question(item.question), *rules.of_answer(item, oracles)])
    gate.refuse_where(duplicates([(item.id, item.question) for item in gate.accepted]))
    return gate


def explain(gate: Gate, index: SearchableIndex, teacher: Teacher, progress: Progress) -> None:
    """Let the teacher write the reasoning of the accepted questions. Where its words do not pass, the question
    stays with the reasoning it had (``reasoning_source`` says which), and the refusal is recorded."""
    oracles = {item.id: [index.chunk(name) for name in item.oracle_ids] for item in gate.accepted if item.oracle_ids}
    prompts = ((item.id, reasoning_messages(item, oracles[item.id])) for item in gate.accepted if item.id in oracles)
    replies = teacher.ask("reasoning", prompts, len(oracles), progress)
    for at, item in enumerate(gate.accepted):
        if item.id not in replies:
            continue
        reply = replies[item.id]
        faults = _unusable(reply) or reasoning_faults(reply.text, item, oracles[item.id])
        if faults:
            gate.refuse(item.id, item.question, item.answer, faults, reply.error or reply.text)
        else:
            gate.accepted[at] = with_reasoning(item, reply.text)
