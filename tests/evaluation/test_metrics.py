"""Each formula against hand-computed cases and an implementation written independently of it."""

from __future__ import annotations

import collections
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from raft.evaluation import metrics

WORDS = st.lists(
    st.sampled_from(["the", "A", "an", "12", "mg", "mg.", "Mg", "cat's", "U.S.", "–", "été", ""]), max_size=7
)
TEXT = WORDS.map(" ".join) | st.text(max_size=30)


def slow_normalize(s: str) -> str:
    """The four steps of SQuAD's evaluate-v2.0.py, one after the other."""
    lowered = s.lower()
    kept = "".join(character for character in lowered if character not in set(string.punctuation))
    without_articles = re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", kept)
    return " ".join(without_articles.split())


def slow_f1(gold: str, predicted: str) -> float:
    gold_words, said = slow_normalize(gold).split(), slow_normalize(predicted).split()
    common = collections.Counter(gold_words) & collections.Counter(said)
    same = sum(common.values())
    if len(gold_words) == 0 or len(said) == 0:
        return float(int(gold_words == said))
    if same == 0:
        return 0.0
    precision, recall = 1.0 * same / len(said), 1.0 * same / len(gold_words)
    return (2 * precision * recall) / (precision + recall)


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_em_and_f1_equal_a_retyped_squad_script(prediction: str, references: list[str]) -> None:
    assert metrics.normalize_answer(prediction) == slow_normalize(prediction)
    assert metrics.token_f1(prediction, references) == pytest.approx(max(slow_f1(r, prediction) for r in references))
    exact = max(float(slow_normalize(r) == slow_normalize(prediction)) for r in references)
    assert metrics.exact_match(prediction, references) == exact


@pytest.mark.parametrize(
    ("prediction", "references", "em", "f1"),
    [
        ("The 12 mg.", ["12 mg"], 1.0, 1.0),
        ("12 mg daily", ["12 mg"], 0.0, 0.8),  # P = 2/3, R = 1
        ("12 mg 12 mg", ["12 mg"], 0.0, 2 / 3),  # a word counts as often as the reference has it
        ("10–20 mg", ["10-20 mg"], 0.0, 0.5),  # the official script removes ASCII punctuation only
        ("seven", ["7", "seven"], 1.0, 1.0),
        ("", ["12 mg"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),  # both are empty after normalization
    ],
)
def test_hand_computed_em_and_f1(prediction: str, references: list[str], em: float, f1: float) -> None:
    assert metrics.exact_match(prediction, references) == em
    assert metrics.token_f1(prediction, references) == pytest.approx(f1)


LABELS = ("yes", "no", "maybe")


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=40))
def test_label_scores_equal_scikit_learn(pairs: list[tuple[str, str | None]]) -> None:
    gold, said = [g for g, _ in pairs], [s for _, s in pairs]
    shown = [s or metrics.NO_LABEL for s in said]
    expected = f1_score(gold, shown, labels=sorted(set(gold)), average="macro", zero_division=0)
    assert metrics.macro_f1(gold, said) == pytest.approx(expected)
    assert metrics.accuracy(gold, said) == pytest.approx(accuracy_score(gold, shown))
    counts = metrics.confusion(gold, said, LABELS)
    assert sum(sum(row.values()) for row in counts.values()) == len(pairs)
    assert sum(row[metrics.NO_LABEL] for row in counts.values()) == said.count(None)


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        ("Yes", "yes"),
        ("Yes, it does so in adults.", "yes"),
        ("not sure", None),
        ("nothing", None),
        ("The answer: yes", None),
        ("", None),
    ],
)
def test_a_label_is_read_from_the_start_of_the_answer(prediction: str, label: str | None) -> None:
    assert metrics.read_label(prediction, LABELS) == label


def test_the_longest_label_wins_and_the_majority_is_stable() -> None:
    assert metrics.read_label("Not stated in the act", ("not", "not stated")) == "not stated"
    assert metrics.majority_label(["no", "yes", "yes", "no", "maybe"]) == "no"


def test_recall_and_reciprocal_rank_by_hand() -> None:
    ranked = ["c4", "c2", "c9", "c1"]
    wanted = [{"c1", "c7"}, {"c2"}, {"c8"}]  # two of three things are found, at ranks 4 and 2
    assert [metrics.recall_at_k(ranked, wanted, k) for k in (1, 2, 3, 4, 10)] == pytest.approx(
        [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )
    assert metrics.reciprocal_rank(ranked, {"c9", "c1"}) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank(ranked, {"c5"}) == 0.0


def test_abstention_by_hand() -> None:
    abstained = [True, True, False, False, True]
    unanswerable = [True, False, True, False, True]
    assert metrics.abstention_precision(abstained, unanswerable) == pytest.approx(2 / 3)
    assert metrics.abstention_recall(abstained, unanswerable) == pytest.approx(2 / 3)
    assert metrics.false_abstention_rate(abstained, unanswerable) == 0.5


def test_nothing_to_count_is_none_and_never_nan() -> None:
    assert metrics.share([]) is None
    assert metrics.abstention_precision([False], [True]) is None
    assert metrics.macro_f1([], []) is None
