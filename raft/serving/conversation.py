"""Follow-up questions: a question that leans on others before it is made one that stands alone.

Turn("What is the first dose of Corvalexin in adults?", "12 mg"), and then "And in children?":

join    searched for: What is the first dose of Corvalexin in adults? And in children? And in children?
        asked:        What is the first dose of Corvalexin in adults? (12 mg) And in children?
model   both:         What is the first dose of Corvalexin in children?      (written by the model; else as join)
off     both:         And in children?

Only the user's questions and the final answers to them are ever used of a conversation: no system message, no
reasoning, no quotes. They become part of the question, in which markers are broken up like in any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from raft.errors import ModelError
from raft.llm.chat import ChatModel, ChatRequest
from raft.prompts import Message, is_refusal, neutralize, parse_answer

FollowUps = Literal["join", "model", "off"]

MOST_TURNS = 16  # that a request is read for; what is used of them is less
_JOINED_TURNS = 2
_MOST_EARLIER = 400  # characters of one earlier question: the newest words, which name what is asked about
_MOST_READ = 4000  # characters of an earlier answer; its final words stand last
_MOST_ANSWER = 200
_MOST_REWRITTEN = 400
_REWRITTEN_TOKENS = 96
_REWRITE = (
    "You are given the questions of a conversation, with short answers. Rewrite the last question so that it can be "
    "understood without the others. Do not answer it. Write the question alone, in one line."
)


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of a conversation, and the final answer that was given to it ("" for none)."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How a question is understood: what is searched for, and what the model is asked. Both stand alone."""

    query: str
    question: str


def turns_of(said: Iterable[tuple[str, str]]) -> tuple[list[Turn], str]:
    """The earlier turns, oldest first, and the last question, of (role, text) in the order of a conversation.

    The question is the last message of the user ("" where there is none). What other roles say counts for nothing but
    for the assistant's words after a question, of which the final answer is kept; a refusal is none.
    """
    pairs: list[tuple[str, str]] = []
    for role, text in said:
        if role == "user":
            pairs.append((text.strip(), ""))
        elif role == "assistant" and pairs:
            pairs[-1] = (pairs[-1][0], text)
    earlier = [pair for pair in pairs[:-1] if pair[0]][-MOST_TURNS:]
    return [Turn(question, _final(text)) for question, text in earlier], pairs[-1][0] if pairs else ""


def _final(text: str) -> str:
    answer = parse_answer(text[-_MOST_READ:])
    return "" if answer.abstained else _one_line(answer.final)[:_MOST_ANSWER]


def read(question: str, earlier: Sequence[Turn], follow_ups: FollowUps, model: ChatModel) -> Reading:
    """How ``question`` is understood after ``earlier``. ``model`` is asked only where ``follow_ups`` says so."""
    if not earlier or follow_ups == "off":
        return Reading(question, question)
    if follow_ups == "model" and (rewritten := _rewritten(question, earlier, model)):
        return Reading(rewritten, rewritten)
    return joined(question, earlier)


def joined(question: str, earlier: Sequence[Turn]) -> Reading:
    """The question after those before it: of more than two, the last two.

    In the search it stands twice, so that it weighs as much as what it may lean on: of 200 questions of Natural
    Questions that changed the topic after two others, the four best passages then held the right one for 180 instead of
    152, and for 198 instead of 199 follow-ups whose topic was named two questions before.
    """
    last = earlier[-_JOINED_TURNS:]
    questions = [_one_line(turn.question)[-_MOST_EARLIER:] for turn in last]
    answered = [
        f"{asked} ({turn.answer})" if turn.answer else asked for asked, turn in zip(questions, last, strict=True)
    ]
    return Reading(" ".join([*questions, question, question]), " ".join([*answered, question]))


def _rewritten(question: str, earlier: Sequence[Turn], model: ChatModel) -> str:
    """The question as the model writes it anew; "" where it writes no question, or nothing at all."""
    said = [
        f"Question: {_one_line(turn.question)[-_MOST_EARLIER:]}\nAnswer: {turn.answer or 'unknown'}"
        for turn in earlier[-_JOINED_TURNS:]
    ]
    asked = neutralize("\n".join([*said, f"Last question: {question}", "Rewritten question:"]))
    request = ChatRequest("rewrite", (Message("system", _REWRITE), Message("user", asked)), _REWRITTEN_TOKENS)
    try:
        text = "".join(model.stream(request))
    except ModelError:  # the answer itself says what is wrong with the model
        return ""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line.removeprefix("Rewritten question:").strip(" \"'*")
    nonsense = len(line) > _MOST_REWRITTEN or is_refusal(line) or neutralize(line) != line
    return "" if nonsense else line


def _one_line(text: str) -> str:
    return " ".join(text.split())
