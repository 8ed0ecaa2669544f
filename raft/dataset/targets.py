"""The text that the student learns to write, in three forms. For "What is the first dose?" over three documents::

    quotes   Document [2] says ##begin_quote##Adults start with 12 mg.##end_quote## The formulary sets the dose.
             <ANSWER>: 12 mg
    noise    Documents [1] and [3] do not hold the answer: they speak of Sorantolol and Visiting Policy. Document [2]
             does. Document [2] says ##begin_quote##Adults start with 12 mg.##end_quote## The formulary sets the dose.
             <ANSWER>: 12 mg
    plain    <ANSWER>: 12 mg

``quotes`` is RAFT's (arXiv 2403.10131, figure 3) and ``plain`` its ablation without chain of thought (section 4.3);
``noise`` says which documents do not help before it quotes one that does, after InstructRAG (arXiv 2406.13629), with
a rationale made by rule. Training, and edits of a dataset, come through here, so that a question's targets agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from raft.dataset.grounding import GroundedQuestion
from raft.prompts import REFUSAL, render_rationale, render_refusal, render_target
from raft.records import Quote

TargetForm = Literal["quotes", "plain", "noise"]


def target_of(
    item: GroundedQuestion,
    context: Sequence[str],
    present: bool,
    *,
    refuse: bool,
    form: TargetForm = "quotes",
    titles: Sequence[str] | None = None,
) -> str:
    """The text the student learns to write over ``context`` (chunk ids in prompt order).

    Quotes name the place of their chunk in this context, from 1. Where the oracle is absent there is nothing to
    quote: the target is the refusal, or (not ``refuse``) the answer from memory. An unanswerable question is always
    refused. ``titles`` says in a few words what each chunk of the context speaks of; only "noise" reads it.
    """
    answerable = item.answer_type != "unanswerable"
    present = present and answerable
    refused = not present and (refuse or not answerable)
    if form == "plain":
        return render_target(REFUSAL if refused else item.answer)
    if form == "noise":
        return _with_rationale(item, context, present, refused, titles)
    if refused:
        return render_refusal()
    return render_target(item.answer, item.reasoning, _quotes(item, context) if present else ())


def _with_rationale(
    item: GroundedQuestion, context: Sequence[str], present: bool, refused: bool, titles: Sequence[str] | None
) -> str:
    holding = [place for place, name in enumerate(context, 1) if present and name in item.oracle_ids]
    rationale = render_rationale(holding, len(context), titles)
    if refused:
        return render_target(REFUSAL, rationale)
    if not present:
        return render_target(item.answer, f"{rationale} {item.reasoning}")
    return f"{rationale} {render_target(item.answer, item.reasoning, _quotes(item, context))}"


def _quotes(item: GroundedQuestion, context: Sequence[str]) -> list[Quote]:
    places: Mapping[str, int] = {chunk_id: place for place, chunk_id in enumerate(context, 1)}
    return [Quote(quote.text, places[quote.chunk_id]) for quote in item.quotes]
