"""The plain sentences: better, worse, not shown, no interval, no tuned model."""

from __future__ import annotations

from raft.config import SystemName
from raft.evaluation.cases import SYSTEMS
from raft.evaluation.scoring import Difference, LabelScores, Sampling, SystemScores
from raft.evaluation.statistics import Interval
from raft.evaluation.verdict import Majority, write_verdict

DRAW = Sampling(0.95, 2000, 0)
COUNTED = {"n": 120, "unanswerable": 20}


def scores(name: SystemName, f1: float, failures: int = 0, labels: LabelScores | None = None) -> SystemScores:
    given, missing = Interval(f1, None, None), None
    return SystemScores(
        system=name, title=SYSTEMS[name].title, model="m", n=120, failures=failures, truncated=0,
        em=Interval(f1, None, None), f1=Interval(f1, f1 - 0.1, f1 + 0.1), labels=labels, quotes=0, quote_validity=None,
        quoted_answers=None, quotes_in_oracle=None, abstention_precision=0.5, abstention_recall=0.75,
        false_abstention_rate=0.05, well_formed=1.0, f1_oracle_given=given, f1_oracle_missing=missing,
        n_oracle_given=90, n_with_oracle=100, prompt_tokens=1.0, completion_tokens=1.0, seconds=1.0,
        documents=SYSTEMS[name].documents, tuned=SYSTEMS[name].tuned,
    )  # fmt: skip


def difference(minus: SystemName, mean: float, low: float | None, high: float | None, p: float) -> Difference:
    return Difference("raft", minus, Interval(mean, low, high), p, p, 0.08)


def first(found: Difference, *systems: SystemScores) -> str:
    return write_verdict(systems, [found], None, COUNTED, DRAW)[0]


def test_better_worse_and_not_shown() -> None:
    rag, raft = scores("rag", 0.4), scores("raft", 0.5)
    better = first(difference("rag", 0.1, 0.02, 0.18, 0.004), rag, raft)
    assert better == (
        "RAFT answers better than RAG: token F1 0.50 against 0.40, a difference of +0.10 "
        "(95% interval +0.02 to +0.18; p = 0.004 after Holm's correction)."
    )
    worse = first(difference("rag", -0.1, -0.18, -0.02, 0.0004), rag, raft)
    assert worse.startswith("RAFT answers worse than RAG")
    assert "p < 0.001" in worse
    unsure = first(difference("rag", 0.1, -0.02, 0.18, 0.2), rag, raft)
    assert unsure.startswith("RAFT is not shown to be better or worse than RAG")
    assert unsure.endswith("120 questions can show a difference of about 0.08 or more.")
    disputed = first(difference("rag", 0.1, 0.01, 0.18, 0.06), rag, raft)  # the interval alone does not decide
    assert disputed.startswith("RAFT is not shown")
    alone = first(difference("rag", 0.1, None, None, 1.0), rag, raft)
    assert alone.endswith("no interval can be given.")


def test_the_strongest_rival_is_named_beside_rag_and_oracles_are_no_rivals() -> None:
    systems = [scores("rag", 0.3), scores("rag_short", 0.5), scores("rag_oracle", 0.9), scores("raft", 0.6)]
    names: tuple[SystemName, ...] = ("rag", "rag_short", "rag_oracle")
    said = write_verdict(systems, [difference(n, 0.1, 0.02, 0.2, 0.01) for n in names], None, COUNTED, DRAW)
    assert [s.split(":")[0] for s in said[:2]] == [
        "RAFT answers better than RAG",
        "RAFT answers better than RAG, bare short answer",
    ]
    assert not any("oracle given" in sentence for sentence in said)


def test_without_a_tuned_model_the_strongest_system_leads() -> None:
    said = write_verdict(
        [scores("rag", 0.3), scores("rag_short", 0.5), scores("rag_oracle", 0.9)], [], None, COUNTED, DRAW
    )
    assert (
        said[0] == "No tuned model was evaluated. RAG, bare short answer has the highest token F1: 0.50 [0.40, 0.60]."
    )


def test_labels_retrieval_abstention_and_failures_are_told() -> None:
    labels = LabelScores(60, Interval(0.7, 0.6, 0.8), 0.6, {})
    systems = [scores("rag", 0.4, failures=3), scores("raft", 0.5, labels=labels)]
    said = write_verdict(systems, [], Majority("yes", 0.55, 0.2), COUNTED, DRAW)
    assert said[1:] == (
        "On the 60 label questions RAFT has accuracy 0.70 [0.60, 0.80]; always answering 'yes' would reach 0.55.",
        "Retrieval found everything needed for 90 of 100 answerable questions; RAFT has token F1 0.50 where it did.",
        "Of the 20 questions that cannot be answered from the documents, RAFT declined 15; of the 100 that can, "
        "it declined 5.",
        "3 of 240 replies failed; they count as wrong answers.",
    )
