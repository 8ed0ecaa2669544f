"""What is asked of the questions once they are accepted: does the retriever find the oracle, does the teacher answer
again, do the quotes entail the answer, what does a judge say.

Each check costs more than the one before it, so that it sees only what that one left. The first flags a question
(``flags`` of grounding.GroundedQuestion); a setting may make it refuse it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raft.artifacts import digest
from raft.dataset.entailment import Entailment, entailment_faults, entailment_scores
from raft.dataset.gate import Gate
from raft.dataset.grounding import GroundedQuestion
from raft.dataset.judge import JUDGE_SCHEMA, judge_faults, judge_messages, parse_verdict
from raft.dataset.near import SearchableIndex
from raft.dataset.quality import retrieval_flag, round_trip_faults
from raft.dataset.teacher import Progress, Prompt, Teacher, unusable
from raft.prompts import build_messages, parse_answer

ROUND_TRIP_DISTRACTORS = 3
_PAIRS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Checks:
    """Which checks are made (config_generate.QualityRecipe)."""

    retriever_k: int
    keep_unfound: bool
    round_trip: str
    seed: int = 0


def flag(gate: Gate, near: Mapping[str, Sequence[str]], checks: Checks) -> None:
    """Flag, or refuse, questions whose oracle the retriever does not find."""

    found = {item.id: retrieval_flag(item.oracle_ids, near[item.id], checks.retriever_k) for item in gate.bases}
    unfound = {name: said for name, said in found.items() if said is not None}
    if checks.keep_unfound:
        gate.sieve(lambda item: replace(item, flags=(*item.flags, unfound[item.id])), unfound)
    else:
        gate.refuse_where(unfound)


def round_trip(
    gate: Gate,
    near: Mapping[str, Sequence[str]],
    answers: Callable[[str, str], bool],
    index: SearchableIndex,
    teacher: Teacher,
    checks: Checks,
    progress: Progress,
) -> None:
    """Let the teacher answer once more, its oracle among distractors, and (``both``) over these alone.

    The distractors are the retriever's best that do not answer the question by ``answers``.
    """
    sides = {"off": (), "oracle": (True,), "both": (True, False)}[checks.round_trip]
    if not sides:
        return

    def prompt_of(item: GroundedQuestion, with_oracle: bool) -> Prompt:
        shown = _shown(item, near[item.id], answers, with_oracle, checks.seed)
        chunks = [index.chunk(name) for name in shown]
        return Prompt(f"{item.id}/{with_oracle}", tuple(build_messages(item.question, chunks)))

    def prompts() -> Iterator[Prompt]:
        return (prompt_of(item, side) for item in gate for side in sides)

    def decide(item: GroundedQuestion) -> GroundedQuestion | list[str]:
        replies = {side: teacher.reply(prompt_of(item, side)) for side in sides}
        said = {side: parse_answer(reply.text) for side, reply in replies.items()}
        unread = [fault for reply in replies.values() for fault in unusable(reply)]
        return unread or round_trip_faults(item, said.get(True), said.get(False)) or item

    teacher.ask("round trip", prompts(), len(gate) * len(sides), progress)
    gate.sieve(decide)


def _shown(
    item: GroundedQuestion, near: Sequence[str], answers: Callable[[str, str], bool], with_oracle: bool, seed: int
) -> list[str]:
    """The chunks of one side: near misses, and the oracles among them in seeded places."""
    misses = (name for name in near if name not in item.oracle_ids and not answers(item.id, name))
    shown = [name for name, _ in zip(misses, range(ROUND_TRIP_DISTRACTORS), strict=False)]
    if with_oracle:
        shown += item.oracle_ids
        random.Random(digest([seed, "round trip", item.id])).shuffle(shown)
    return shown


def entail(gate: Gate, index: SearchableIndex, model: Entailment, least: float, progress: Progress) -> None:
    """Refuse the answers that their oracles do not entail, by a cross-encoder."""
    refused: dict[str, str] = {}
    questions, done, total = iter(gate), 0, len(gate)
    while batch := list(itertools.islice(questions, _PAIRS_AT_ONCE)):
        scores = entailment_scores(batch, lambda name: index.chunk(name).text, model)
        refused.update((name, fault) for name, score in scores.items() for fault in entailment_faults(score, least))
        done += len(batch)
        progress("entailment", done, total, f"{1 - len(refused) / done:.0%} entailed")
    gate.refuse_where(refused)


def judge(gate: Gate, index: SearchableIndex, reader: Teacher, progress: Progress) -> None:
    """Refuse what a judge model does not find right. ``reader`` asks the judge as a teacher is asked."""

    def prompt_of(item: GroundedQuestion) -> Prompt:
        oracles = [index.chunk(name).text for name in item.oracle_ids]
        messages = judge_messages(item.question, item.answer, oracles)
        return Prompt(item.id, messages, JUDGE_SCHEMA)

    def decide(item: GroundedQuestion) -> GroundedQuestion | list[str]:
        if not item.oracle_ids:
            return item
        reply = reader.reply(prompt_of(item))
        return judge_faults(None if reply.error is not None else parse_verdict(reply.text)) or item

    answerable = sum(bool(item.oracle_ids) for item in gate.bases)
    reader.ask("judge", (prompt_of(item) for item in gate if item.oracle_ids), answerable, progress)
    gate.sieve(decide)
