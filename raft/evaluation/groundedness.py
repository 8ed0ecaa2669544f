"""Is an answer borne out by the texts that were given, and is it about its question? Without a judge::

    claim = Claim("How do adults start?", "12 mg by mouth", ("Adults start with 12 mg by mouth.", "Children ..."))
    lexical(claim)                                                          -> 1.0
    entailed([claim], load_entailment("OWNER/NAME"))                        -> [0.97]
    answer_relevance(["How do adults start?"], ["12 mg by mouth"], encoder) -> [0.41]

Each sentence of an answer counts by what bears it out best, and the answer by the mean of its sentences: the form of
SummaC_ZS (Laban et al. 2022, arXiv 2111.09525). What bears a sentence out is one sentence of a text, by the words and
numbers that the quality gate looks for, or one text, by its chance of entailment. What two of them bear out only
together is therefore scored too low. Yes and no cannot be told by words, nor a paraphrase:
benchmarks/groundedness.py measures what the words tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft.dataset.entailment import Entailment
from raft.dataset.grounding import sentences, words
from raft.dataset.support import support
from raft.retrieval.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer to a question, and the texts that should bear it out."""

    question: str
    answer: str
    texts: tuple[str, ...]


def lexical(claim: Claim) -> float:
    """From 0 to 1: how far the texts bear the answer out, by its words. 0.0 for an answer without words.

    A sentence of the answer counts by the sentence of the texts that has the largest share of its content words, those
    that have all of its numbers alone (``raft.dataset.support.support``, the rule of the quality gate).
    """
    there = [sentence for text in claim.texts for sentence in _sentences(text)]
    return _mean(
        [max((support(part, claim.question, each) for each in there), default=0.0) for part in _sentences(claim.answer)]
    )


def _sentences(text: str) -> list[str]:
    """Those that have words."""
    return [part for start, end in sentences(text) if words(part := text[start:end])]


def entailed(claims: Sequence[Claim], model: Entailment) -> list[float]:
    """For each claim, from 0 to 1, how likely its texts entail the answer by a cross-encoder for natural language
    inference (``raft.dataset.entailment.load_entailment`` opens one by its name). 0.0 for an answer without words.

    A sentence is put to the model behind the question, as the quality gate puts an answer.
    """
    asked = [
        (at, number, (text, f"{claim.question} {part}".strip()))
        for at, claim in enumerate(claims)
        for number, part in enumerate(_sentences(claim.answer))
        for text in claim.texts
    ]
    best = [[0.0] * len(_sentences(claim.answer)) for claim in claims]
    for (at, number, _), score in zip(asked, model.scores([pair for *_, pair in asked]), strict=True):
        best[at][number] = max(best[at][number], score)
    return [_mean(scores) for scores in best]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) if scores else 0.0


def answer_relevance(questions: Sequence[str], answers: Sequence[str], encoder: Encoder) -> list[float]:
    """From -1 to 1: the cosine between each question and its answer, as the encoder sees queries and documents. 0.0 for
    an answer without words. Raises ValueError on unequal lengths.

    It says whether an answer speaks of what was asked; not whether it is right, complete or borne out, and figures of
    two encoders do not compare. It is not the answer relevancy of RAGAS (Es et al. 2024, section 3), which has a
    language model write questions for the answer and takes their mean cosine with the question.
    """
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} questions and {len(answers)} answers; expected equal numbers")
    told = [at for at, answer in enumerate(answers) if words(answer)]
    relevance = [0.0] * len(answers)
    if told:
        asked = encoder.encode_queries([questions[at] for at in told])  # (told, dimension), rows of length 1
        said = encoder.encode_documents([answers[at] for at in told])
        for at, cosine in zip(told, (asked * said).sum(axis=1), strict=True):
            relevance[at] = float(cosine)
    return relevance
