"""What takes a model to measure: answers by the index's encoder and by a cross-encoder for entailment. In the recipe::

    relevance = true                                   -> Result.relevance
    nli = "cross-encoder/nli-deberta-v3-xsmall"        -> Result.nli_groundedness

Both stand beside what words alone tell, and are off unless a recipe asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raft.artifacts import read_manifest
from raft.config import EvaluateRecipe, require
from raft.dataset.entailment import Entailment, load_entailment
from raft.dataset.grounding import CLOSED_TYPES
from raft.evaluation.cases import Case, System
from raft.evaluation.groundedness import answer_relevance, entailed
from raft.evaluation.replies import Result, claim_of, gold_label, measured
from raft.retrieval.encoder import Encoder

_OF_ENCODER = ("model", "query_prompt", "document_prompt", "backend", "precision")


@dataclass(frozen=True, slots=True)
class Measures:
    """The models that a recipe names for measuring; None where it names none."""

    encoder: Encoder | None = None
    entailment: Entailment | None = None

    def added_to(
        self, results: Sequence[Result], system: System, cases: Sequence[Case], labels: Sequence[str]
    ) -> list[Result]:
        """The results of one system, one a case, with what these models say of them. Raises InputError when one gives
        what is no number."""
        found = list(results)
        if self.encoder is not None:
            found = with_relevance(found, cases, labels, self.encoder)
        return found if self.entailment is None else with_entailment(found, system, cases, self.entailment)


def open_measures(recipe: EvaluateRecipe) -> Measures:
    """Opened before anything is asked, so that hours of answers never wait for a model that is not there. Raises
    ModelError or ArtifactError when one cannot be opened."""
    entailment = None if recipe.nli is None else load_entailment(recipe.nli)
    if not recipe.relevance:
        return Measures(None, entailment)
    made = read_manifest(require(recipe.index, "index", "--index DIR"), "index").recipe["encoder"]
    encoder = Encoder.load(**{name: made[name] for name in _OF_ENCODER if name in made}, strict=False)
    return Measures(encoder, entailment)


def with_relevance(
    results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str], encoder: Encoder
) -> list[Result]:
    """The results with their relevance, None where there is nothing to compare: refusals, and questions whose answer
    is yes, no or a label. A failure is compared: it speaks of nothing. Raises InputError as ``score_reply`` does."""
    told = [
        at for at, (result, case) in enumerate(zip(results, cases, strict=True))
        if not (result.abstained and result.final.strip())
        and case.item.answer_type not in CLOSED_TYPES and gold_label(case.item, labels) is None
    ]  # fmt: skip
    found = answer_relevance([cases[at].item.question for at in told], [results[at].final for at in told], encoder)
    scores = dict(zip(told, found, strict=True))
    return [
        replace(result, relevance=measured("relevance", result.question_id, scores.get, at))
        for at, result in enumerate(results)
    ]


def with_entailment(
    results: Sequence[Result], system: System, cases: Sequence[Case], model: Entailment
) -> list[Result]:
    """The results, each that has a groundedness by its words also with the one that the model gives. Raises InputError
    as ``score_reply`` does."""
    judged = [at for at, result in enumerate(results) if result.groundedness is not None]
    claims = [claim_of(cases[at].item, results[at].final, system.chunks_of(cases[at]) or ()) for at in judged]
    scores = dict(zip(judged, entailed(claims, model), strict=True))
    return [
        replace(result, nli_groundedness=measured("nli_groundedness", result.question_id, scores.get, at))
        for at, result in enumerate(results)
    ]


def without_confidence(results: Mapping[System, Sequence[Result]]) -> list[str]:
    """What a report must say of systems whose model gave no log-probabilities though it was asked for them: their
    figures of confidence are over the other replies."""
    notes = []
    for system, rows in results.items():
        answered = [row for row in rows if row.error is None and row.final]
        lacking = sum(row.confidence is None for row in answered)
        if lacking and system.weights != "constant":
            notes.append(
                f"the model of {system.name} gave no token log-probabilities for {lacking} of {len(answered)} answers,"
                " which have no confidence"
            )
    return notes
