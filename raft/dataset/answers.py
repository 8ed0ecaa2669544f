"""The teacher answers a question from its oracle chunk, and explains reference answers.

It answers with the project's own prompt over that one chunk, before any context is drawn, so that no answer is
ever written from a chunk that cannot hold it. A reply is read into the parts of a target::

    Document [1] says ##begin_quote##Adults start with 12 mg.##end_quote## So the first dose is 12 mg.
    <ANSWER>: 12 mg
        -> quotes ["Adults start with 12 mg."], reasoning "So the first dose is 12 mg.", answer "12 mg"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from raft.corpus.spans import find_span
from raft.dataset.grounding import MOST_QUOTES, GroundedQuestion, Passage, content_words, quote_around, shorten
from raft.dataset.questions import SAMPLE
from raft.prompts import (
    Message,
    Shot,
    build_messages,
    is_refusal,
    neutralize,
    parse_answer,
    render_documents,
    render_refusal,
    render_target,
    without_quotes,
)
from raft.records import Answer, AnswerType, Chunk, Quote

_SHOT = Shot(
    "What does a late lantern of the Lantern Lodge cost?",
    render_target(
        "4 crowns a day",
        "The rule for late lanterns sets the price.",
        [Quote("A lantern that comes back late costs 4 crowns a day.", 1)],
    ),
    (SAMPLE,),
)


def answer_messages(question: str, chunk: Chunk) -> tuple[Message, ...]:
    """The project's prompt over the oracle chunk alone; one worked example shows small teachers the form."""
    return tuple(build_messages(question, [chunk], [_SHOT]))


def read_teacher_answer(question_id: str, question: str, text: str, chunk: Chunk) -> tuple[GroundedQuestion, Answer]:
    """The question with the teacher's answer, and the parsed reply for the quality rules.

    Quotes that stand verbatim in the chunk are kept in the chunk's own spelling, cut to the project's length;
    the others are left out (the reply's own quotes show them).
    """
    answer = parse_answer(text)
    spans = [find_span(chunk.text, quote.text) for quote in answer.quotes]
    quotes = dict.fromkeys(quote_around(chunk.text, span, answer.final) for span in spans if span is not None)
    reasoning = shorten(without_quotes(answer.reasoning))
    final = answer.final.strip().removesuffix(".")
    grounded = GroundedQuestion(
        question_id, question, final, answer_type_of(final),
        tuple(Passage(chunk.id, quote) for quote in quotes if quote)[:MOST_QUOTES], (chunk.document_id,), "teacher",
        reasoning=reasoning, reasoning_source="teacher" if reasoning else "none",
    )  # fmt: skip
    return grounded, answer


def answer_type_of(answer: str) -> AnswerType:
    """What kind of answer a text is, told by its form alone."""
    if answer.lower() in ("yes", "no"):
        return "yesno"
    if any(char.isdigit() for char in answer):
        return "number"
    return "short"


def reasoning_messages(item: GroundedQuestion, chunks: Sequence[Chunk]) -> tuple[Message, ...]:
    """The prompt that asks why the reference answer follows from the oracle chunks."""
    asked = f"Question: {item.question}\nCorrect answer: {item.answer}"
    wish = "In one short sentence of your own words, say why the documents give this answer."
    return (
        Message("system", "You explain answers from documents. Use only what the documents say."),
        Message("user", f"{render_documents(chunks)}\n\n{neutralize(asked)}\n\n{wish}"),
    )


def reasoning_faults(text: str, item: GroundedQuestion, chunks: Sequence[Chunk]) -> list[str]:
    """Why a teacher's reasoning cannot be used; empty when it can.

    Half of its content words, and every number in it, must stand in the oracle chunks, question or answer.
    """
    said = shorten(without_quotes(text))
    if not said or text.strip() == render_refusal() or is_refusal(said):
        return ["reasoning_empty"]
    known = content_words(" ".join([item.question, item.answer, *(chunk.text for chunk in chunks)]))
    used = content_words(said)
    faults = ["reasoning_too_long"] if len(said.split()) > 60 else []
    if any(word[0].isdigit() and word not in known for word in used) or 2 * len(used & known) < len(used):
        faults.append("reasoning_not_grounded")
    return faults


def with_reasoning(item: GroundedQuestion, text: str) -> GroundedQuestion:
    """The question with the teacher's reasoning in place of its own."""
    return replace(item, reasoning=shorten(without_quotes(text)), reasoning_source="teacher")


def target_of(item: GroundedQuestion, context: Sequence[str], present: bool, refuse: bool) -> str:
    """The text the student learns to write over ``context`` (chunk ids in prompt order).

    Quotes name the place of their chunk in this context, from 1. Where the oracle is absent there is nothing to
    quote: the target is the refusal, or (not ``refuse``) the bare answer from memory. An unanswerable question
    is always refused.
    """
    if present:
        places: Mapping[str, int] = {chunk_id: place for place, chunk_id in enumerate(context, 1)}
        return render_target(item.answer, item.reasoning, [Quote(q.text, places[q.chunk_id]) for q in item.quotes])
    if refuse or item.answer_type == "unanswerable":
        return render_refusal()
    return render_target(item.answer, item.reasoning)
