"""The teacher answers a question from its oracle chunk, and explains reference answers.

It answers with the project's own prompt over that one chunk (two, where a question needs both), before any context is
drawn, so that no answer is ever written from a chunk that cannot hold it. A reply is read into the parts of a target::

    Document [1] says ##begin_quote##Adults start with 12 mg.##end_quote## So the first dose is 12 mg.
    <ANSWER>: 12 mg
        -> quotes ["Adults start with 12 mg."], reasoning "So the first dose is 12 mg.", answer "12 mg"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raft.corpus.spans import find_span
from raft.dataset.candidates import Candidate
from raft.dataset.grounding import (
    MOST_QUOTE_WORDS,
    MOST_QUOTES,
    GroundedQuestion,
    Passage,
    best_sentence,
    content_words,
    quote_around,
    shorten,
)
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
from raft.records import Answer, AnswerType, Chunk, QuestionType, Quote

_MOST_BARE_WORDS = 20  # of a reply that is taken for an answer without its form

_SHOT = Shot(
    "What does a late lantern of the Lantern Lodge cost?",
    render_target(
        "4 crowns a day",
        "The rule for late lanterns sets the price.",
        [Quote("A lantern that comes back late costs 4 crowns a day.", 1)],
    ),
    (SAMPLE,),
)


def answer_messages(question: str, chunks: Sequence[Chunk], hint: str = "") -> tuple[Message, ...]:
    """The project's prompt over these chunks; one worked example shows small teachers the form. ``hint`` says how a
    question of its type is answered; the student never sees it."""
    return tuple(build_messages(f"{question} {hint}".strip(), chunks, [_SHOT]))


def read_teacher_answer(
    question_id: str, question: str, text: str, chunks: Sequence[Chunk], kind: QuestionType = "factual"
) -> tuple[GroundedQuestion, Answer]:
    """The question with the teacher's answer, and the parsed reply for the quality rules.

    Quotes that stand verbatim in a chunk are kept in the chunk's own spelling, cut to the project's length; the
    others are left out (the reply's own quotes show them). Small teachers often say nothing but the answer: it is
    taken as one, and where its words stand in a chunk, their sentence is the quote.
    """
    answer = _bare(parse_answer(text))
    found = [_quoted(quote, answer.final, chunks) for quote in answer.quotes]
    if not answer.quotes and not answer.abstained:
        found = [_sentence_of(answer.final, question, chunk) for chunk in chunks]
    quotes = tuple(dict.fromkeys(passage for passage in found if passage is not None))[:MOST_QUOTES]
    reasoning = shorten(without_quotes(answer.reasoning))
    final = answer.final.strip().removesuffix(".")
    if kind == "yesno":
        final = _yes_or_no(final)
    documents = dict.fromkeys(chunk.document_id for chunk in chunks)
    grounded = GroundedQuestion(
        question_id, question, final, answer_type_of(final), quotes, tuple(documents), "teacher",
        reasoning=reasoning, reasoning_source="teacher" if reasoning else "none", question_type=kind,
    )  # fmt: skip
    return grounded, answer


def _bare(answer: Answer) -> Answer:
    """The answer as well formed when it is a few words and nothing else."""
    bare = not answer.quotes and "\n" not in answer.text.strip() and len(answer.text.split()) <= _MOST_BARE_WORDS
    return replace(answer, well_formed=True) if bare and answer.text.strip() else answer


def _sentence_of(answer: str, question: str, chunk: Chunk) -> Passage | None:
    """The sentence of the chunk that holds the answer's words, and most of the question's."""
    span = best_sentence(chunk.text, answer, question)
    if span is None or find_span(chunk.text[slice(*span)], answer.strip().removesuffix(".")) is None:
        return None
    quote = quote_around(chunk.text, span, answer)
    return Passage(chunk.id, quote) if quote else None


def _quoted(quote: Quote, answer: str, chunks: Sequence[Chunk]) -> Passage | None:
    """Where the quote stands: in the chunk that it names, or else in any."""
    named = (quote.document or 1) - 1
    for chunk in (*chunks[named : named + 1], *chunks):
        span = find_span(chunk.text, quote.text)
        if span is not None and (text := quote_around(chunk.text, span, answer)):
            return Passage(chunk.id, text)
    return None


def _yes_or_no(answer: str) -> str:
    """``yes`` for "Yes, within 14 days": a closed answer is its first word."""
    first = answer.split(maxsplit=1)[0].strip(",.;:").lower() if answer else ""
    return first if first in ("yes", "no") else answer


def candidate_answer(question_id: str, question: str, chunk: Chunk, candidate: Candidate) -> GroundedQuestion:
    """The question whose answer was chosen first: its quote is the sentence that the answer was taken from."""
    answer = " ".join(chunk.text[slice(*candidate.answer)].split())
    sentence = chunk.text[slice(*candidate.sentence)]
    short = len(sentence.split()) <= MOST_QUOTE_WORDS
    quote = sentence if short else quote_around(chunk.text, candidate.sentence, answer)
    return GroundedQuestion(
        question_id, question, answer, answer_type_of(answer), (Passage(chunk.id, quote),), (chunk.document_id,),
        "teacher", question_type="numeric" if candidate.kind == "number" else "factual",
    )  # fmt: skip


def unanswerable(question_id: str, question: str, chunk: Chunk) -> GroundedQuestion:
    """A question about a chunk's subject that the documents do not answer."""
    return GroundedQuestion(
        question_id, question, "", "unanswerable", (), (chunk.document_id,), "teacher", question_type="unanswerable"
    )


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
