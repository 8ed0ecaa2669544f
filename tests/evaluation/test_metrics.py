"""Each formula against hand-computed cases and an implementation written independently of it."""

from __future__ import annotations

import collections
import itertools
import math
import re
import string
from fractions import Fraction

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, R
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

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


ASCII_TEXT = st.lists(
    st.sampled_from(["The", "gunman", "GUNMAN", "12.5", "mg", "cat's", "U.S.", "a_b", "-", "", "\n"]), max_size=12
).map(" ".join) | st.text(string.printable, max_size=30)
STATED = ASCII_TEXT.filter(str.strip)


@given(ASCII_TEXT, st.lists(STATED, min_size=1, max_size=3))
def test_rouge_l_equals_rouge_score(prediction: str, references: list[str]) -> None:
    theirs = RougeScorer(["rougeL"]).score_multi(references, prediction)["rougeL"].fmeasure
    assert metrics.rouge_l(prediction, references) == pytest.approx(theirs)


def slow_longest_common(first: list[str], second: list[str]) -> int:
    """The longest of all subsequences of the first that the second has too."""
    for length in range(len(first), 0, -1):
        for kept in itertools.combinations(first, length):
            rest = iter(second)
            if all(word in rest for word in kept):
                return length
    return 0


SHORT = st.lists(st.sampled_from(["ein", "Wort", "λόγος", "слово", "é"]), max_size=7)


@given(SHORT, SHORT.filter(bool))
def test_rouge_l_in_any_script_equals_the_search_through_all_subsequences(said: list[str], gold: list[str]) -> None:
    common = slow_longest_common([w.lower() for w in said], [w.lower() for w in gold])
    found = metrics.rouge_l(" ".join(said), [" ".join(gold)])
    assert found == pytest.approx(2 * common / (len(said) + len(gold)))


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("police kill the gunman", ["police killed the gunman"], 3 / 4),  # Lin 2004, section 3.1: S2
        ("the gunman kill police", ["police killed the gunman"], 2 / 4),  # and S3: the order counts
        ("12 mg", ["12 mg daily at night", "12 mg"], 1.0),
        ("Ναι", ["ναι"], 1.0),
        ("", ["12 mg"], 0.0),
        ("12 mg", ["±"], 0.0),
    ],
)
def test_hand_computed_rouge_l(prediction: str, references: list[str], score: float) -> None:
    assert metrics.rouge_l(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "references", "contained"),
    [
        ("It is not so", ["no"], 0.0),
        ("No, it is not", ["no"], 1.0),
        ("Give 1.5 mg", ["5 mg"], 0.0),
        ("Give 15 mg", ["5 mg"], 0.0),
        ("Give 5 mg.", ["5 mg"], 1.0),
        ("before the high court of Arden", ["The High Court"], 1.0),
        ("vitamin C", ["vitamin A"], 0.0),  # an article inside an answer may be its point
        ("answer a", ["A"], 1.0),
        ("mg 5", ["5 mg"], 0.0),
        ("12 mg", ["seven", "12 mg"], 1.0),
        ("It’s the ‘Great  Hall’", ["great hall"], 1.0),
        ("", ["12 mg"], 0.0),
        ("12 mg", ["±"], 0.0),
        ("12 mg", ["", "13 mg"], 0.0),  # an empty alias is in nothing
    ],
)
def test_answers_are_contained_at_word_boundaries(prediction: str, references: list[str], contained: float) -> None:
    assert metrics.contains_answer(prediction, references) == contained


LETTERS = st.lists(st.sampled_from(["no", "not", "o", "n", "5", "1.5"]), max_size=8)


@given(LETTERS, LETTERS.filter(bool))
def test_containment_equals_a_search_word_by_word(said: list[str], wanted: list[str]) -> None:
    places = range(len(said) - len(wanted) + 1)
    expected = any(said[at : at + len(wanted)] == wanted for at in places)
    assert metrics.contains_answer(" ".join(said), [" ".join(wanted)]) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "matches"),
    [
        ("about 1000 crowns", ["1,000 crowns"], 1.0),
        ("50 percent", ["50 %"], 1.0),
        ("50 per cent", ["50%"], 1.0),
        ("12.0 mg", ["12 mg"], 1.0),
        ("12mg", ["12 milligrams"], 1.0),
        ("two doses", ["2 doses"], 1.0),
        ("from 5 mg up to 10 mg", ["5 mg to 10 mg"], 1.0),
        ("5 mg", ["5 mg to 10 mg"], 0.0),  # all numbers
        ("13 mg", ["12 mg"], 0.0),
        ("12 ml", ["12 mg"], 0.0),
        ("12", ["12 mg"], 0.0),  # the unit is stated
        ("12 mg", ["12"], 1.0),  # no unit is stated
        ("120 mg", ["12 mg"], 0.0),
        ("14 days", ["2 weeks", "14 days"], 1.0),
        ("twenty", ["20", "twenty"], 1.0),
        ("thirty", ["20", "twenty"], 0.0),
        ("see 2.1.3", ["section 2.1.3"], 1.0),
        ("see 2.1", ["section 2.1.3"], 0.0),
        ("", ["12 mg"], 0.0),
        ("12 mg", ["the registrar"], None),
        ("", ["Covid-19"], None),  # counts nothing
    ],
)
def test_numbers_match_by_value_and_unit(prediction: str, references: list[str], matches: float | None) -> None:
    assert metrics.numeric_match(prediction, references) == matches


@given(st.integers(13, 10**7), st.integers(0, 99), st.sampled_from(["mg", "%", "days", "km"]), st.integers(1, 9))
def test_how_a_number_is_written_does_not_matter_and_its_value_does(
    whole: int, hundredths: int, unit: str, more: int
) -> None:
    reference = f"{whole}.{hundredths:02} {unit}"
    value = Fraction(100 * whole + hundredths, 100)
    for written in (f"{whole:,}.{hundredths:02} {unit}", f"{whole}.{hundredths:02}0 {unit}", f"{float(value)}{unit}"):
        assert metrics.numeric_match(f"It is {written}.", [reference]) == 1.0
    assert metrics.numeric_match(f"It is {whole + more}.{hundredths:02} {unit}.", [reference]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("12 mg", ["12 mg"], 1.0),
        ("12.0 milligrams, at once", ["12 mg"], 1.0),  # by value, the unit in any spelling; words do not count
        ("12", ["12 mg"], 0.0),  # of no unit
        ("12 ml", ["12 mg"], 0.0),
        ("13 mg", ["12 mg"], 0.0),
        ("not 12 mg", ["12 mg"], 2 / 3),  # P = 1/2, R = 1
        ("12 mg, then 5 mg for 3 days", ["12 mg"], 1 / 2),  # P = 1/3, R = 1
        ("12 mg", ["12 mg for 3 days"], 2 / 3),  # P = 1, R = 1/2
        ("section 2.1.3", ["2.1.3"], 1.0),
        ("section 2.1.4", ["2.1.3"], 0.0),
        ("It may not be kept", ["The holder must not keep a dog"], 1.0),
        ("It may be kept", ["The holder must not keep a dog"], 0.0),
        ("They don\u2019t", ["No, never"], 1.0),
        ("", ["12 mg"], 0.0),
        ("5 mg", ["12 mg", "5 mg"], 1.0),  # the best reference
        ("20", ["twenty", "20"], 1.0),
        ("the usual toll", ["23 crowns", "The usual toll"], 1.0),  # a reference without facts: its words
        ("the usual", ["23 crowns", "The usual toll"], 0.0),
        ("12 mg", ["by mouth"], None),
        ("not known", ["Northern knights"], None),
    ],
)
def test_facts_that_decide_are_compared_in_both_directions(prediction: str, references: list[str], score) -> None:
    assert metrics.critical_f1(prediction, references) == (score if score is None else pytest.approx(score))


@given(st.lists(st.sampled_from(["12 mg", "5 ml", "not", "3 days", "by mouth", "2.1.3"]), max_size=5).map(" and ".join))
def test_a_text_has_its_own_facts_and_the_score_is_the_same_both_ways(text: str) -> None:
    other = "not 5 mg for 3 days"
    assert metrics.critical_f1(other, [other]) == 1.0
    if (there := metrics.critical_f1(other, [text or "x"])) is not None:
        assert metrics.critical_f1(text, [text]) == 1.0
        assert metrics.critical_f1(text, [other]) == pytest.approx(there)


@pytest.mark.parametrize(
    "metric", [metrics.rouge_l, metrics.contains_answer, metrics.numeric_match, metrics.critical_f1]
)
def test_nothing_to_compare_with_is_refused(metric) -> None:
    for references in ([], [""], [" ", "\n"]):
        with pytest.raises(ValueError, match="no reference to compare with"):
            metric("12 mg", references)


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


@pytest.mark.parametrize(
    ("prediction", "label"), [("A", "A"), ("a) the ferry", "A"), ("the ferry", None), ("", None), ("B.", "B")]
)
def test_a_label_that_is_an_article_is_read_as_a_word(prediction: str, label: str | None) -> None:
    assert metrics.read_label(prediction, ("A", "B", "C", "D")) == label


def test_recall_and_reciprocal_rank_by_hand() -> None:
    ranked = ["c4", "c2", "c9", "c1"]
    wanted = [{"c1", "c7"}, {"c2"}, {"c8"}]  # two of three things are found, at ranks 4 and 2
    assert [metrics.recall_at_k(ranked, wanted, k) for k in (1, 2, 3, 4, 10)] == pytest.approx(
        [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )
    assert metrics.reciprocal_rank(ranked, {"c9", "c1"}) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank(ranked, {"c5"}) == 0.0


RANKING = st.permutations([f"c{n}" for n in range(12)])


@given(
    RANKING, st.integers(0, 12), st.sets(st.sampled_from([f"c{n}" for n in range(14)]), min_size=1), st.integers(1, 15)
)
def test_recall_and_reciprocal_rank_equal_ir_measures(ranked: list[str], found: int, wanted: set[str], k: int) -> None:
    ranked = ranked[:found]
    qrels = [ir_measures.Qrel("q", name, 1) for name in wanted]
    run = [ir_measures.ScoredDoc("q", name, -rank) for rank, name in enumerate(ranked)]
    theirs = ir_measures.calc_aggregate([R @ k, RR], qrels, run) if run else {R @ k: 0.0, RR: 0.0}
    assert metrics.recall_at_k(ranked, [{name} for name in wanted], k) == pytest.approx(theirs[R @ k])
    assert metrics.reciprocal_rank(ranked, wanted) == pytest.approx(theirs[RR])


def test_citations_by_hand() -> None:
    quoted = ["c1", "c1", "c9", None]  # twice the oracle, another document, words that stand nowhere
    assert metrics.quote_validity(quoted) == 3 / 4
    assert metrics.citation_precision(quoted, {"c1", "c2", "c5"}) == 2 / 4
    relevant = [{"c1", "c7"}, {"c2"}, {"c5"}]  # the first two are given
    assert metrics.citation_recall(quoted, relevant, ["c1", "c9", "c2"]) == 1 / 2
    assert metrics.citation_recall([], relevant, ["c1"]) == 0.0
    assert metrics.citation_recall(quoted, relevant, ["c9"]) is None
    assert metrics.citation_recall(quoted, [], ["c1"]) is None
    assert (metrics.quote_validity([]), metrics.citation_precision([], {"c1"})) == (None, None)


def test_quotes_with_swapped_ids_are_no_citations() -> None:
    swapped = {"c1": "c2", "c2": "c1"}
    quoted = ["c1", "c1"]
    assert metrics.citation_precision(quoted, {"c1"}) == metrics.citation_recall(quoted, [{"c1"}], ["c1", "c2"]) == 1.0
    wrong = [swapped[name] for name in quoted]
    assert metrics.citation_precision(wrong, {"c1"}) == metrics.citation_recall(wrong, [{"c1"}], ["c1", "c2"]) == 0.0


def test_truthfulness_by_hand() -> None:
    assert metrics.truthfulness(right=True, missing=False) == 1.0
    assert metrics.truthfulness(right=True, missing=True) == 1.0  # declined, and rightly
    assert metrics.truthfulness(right=False, missing=True) == 0.0
    assert metrics.truthfulness(right=False, missing=False) == -1.0


SCORED = st.lists(st.tuples(st.integers(0, 6).map(lambda n: n / 7) | st.floats(-2, 2), st.booleans()), max_size=40)


@given(SCORED)
def test_auroc_equals_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    scores, labels = [score for score, _ in rows], [label for _, label in rows]
    found = metrics.auroc(scores, labels)
    if len(set(labels)) < 2:
        assert found is None
        return
    assert found == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.auroc(scores[::-1], labels[::-1]) == found
    assert metrics.auroc(scores, [not label for label in labels]) == pytest.approx(1 - found)


def test_auroc_by_hand_and_what_it_refuses() -> None:
    assert metrics.auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == 3.5 / 4  # of four pairs one is a tie
    assert metrics.auroc([1.0, 1.0, 1.0], [True, False, True]) == 0.5
    with pytest.raises(ValueError, match="1 of 2 scores are not numbers"):
        metrics.auroc([math.nan, 0.5], [True, False])
    with pytest.raises(ValueError, match="shorter"):
        metrics.auroc([0.1, 0.5], [True])


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
