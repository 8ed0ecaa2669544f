"""How sure a model was of its final answer, from the log-probabilities of the tokens that it wrote::

    text   = "Document [1] says ##begin_quote##...##end_quote##\\n<ANSWER>: 12 mg"
    pieces = (..., (":", -0.01), (" 12", -0.11), (" mg", -0.02))
    confidence(text, pieces)      -> 0.937...   exp((-0.11 - 0.02) / 2)

It is the chance of the answer behind the reasoning that was written before it, not of every way to say the same; of a
reply without the mark it is that of the whole text, which then is its final answer.
"""

from __future__ import annotations

import math

from raft.llm.chat import TokenLogprobs
from raft.prompts import ANSWER_MARK
from raft.qa import read_answer


def confidence(text: str, logprobs: TokenLogprobs | None, short: bool = False) -> float | None:
    """From 0 to 1: exp of the mean log-probability of the tokens that overlap the final answer of a reply, None where
    there are none, or one is no number. ``logprobs`` are pieces that join to the text; ``short`` is as for
    ``qa.read_answer``.

    The length-normalized likelihood of a sequence (Murray & Chiang 2018, arXiv 1808.10006, section 3; Malinin & Gales
    2021, arXiv 2002.07650, section 3): without the mean, long answers would count as unsure for their length.
    """
    if not logprobs:
        return None
    begin, end = answer_span(text, short)
    inside, at = [], 0
    for piece, logprob in logprobs:
        if at < end and at + len(piece) > begin:
            inside.append(logprob)
        at += len(piece)
    if not inside or not all(map(math.isfinite, inside)):
        return None
    return math.exp(min(0.0, math.fsum(inside) / len(inside)))


def answer_span(text: str, short: bool = False) -> tuple[int, int]:
    """Where the final answer of a reply stands in its text, as offsets; (0, 0) where it has none. Of an answer that
    is the text without its quotes, the whole text."""
    final = read_answer(text, short).final
    if not final:
        return 0, 0
    begin = text.find(final, text.rfind(ANSWER_MARK) + len(ANSWER_MARK) if ANSWER_MARK in text else 0)
    return (begin, begin + len(final)) if begin >= 0 else (0, len(text))
