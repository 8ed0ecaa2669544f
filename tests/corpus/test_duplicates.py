"""Groups hold verified pairs only, and hold all that a slow obvious search finds."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.corpus import duplicates
from raft.corpus.duplicates import jaccard, near_duplicates, shingles


def slow_groups(texts: list[str], threshold: float) -> list[int]:
    """All pairs, one by one."""
    group = list(range(len(texts)))
    for one, two in combinations(range(len(texts)), 2):
        if jaccard(shingles(texts[one]), shingles(texts[two])) >= threshold:
            group = [group[one] if name == group[two] else name for name in group]
    order: dict[int, int] = {}
    return [order.setdefault(name, len(order)) for name in group]


_WORDS = "dose limit ward adult child mouth night first rent lease notice tenant".split()  # noqa: SIM905
_BASES = [" ".join(random.Random(n).choices(_WORDS, k=40)) for n in range(4)]


@st.composite
def edited(draw: st.DrawFn) -> str:
    words = draw(st.sampled_from(_BASES)).split()
    for at in draw(st.lists(st.integers(0, len(words) - 1), max_size=4)):
        words[at] = draw(st.sampled_from(_WORDS))
    return " ".join(words[draw(st.integers(0, 3)) :])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(edited() | st.sampled_from(["", "!", "dose", "Dose.", "dose limit"]), max_size=14),
    st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0]),
)
def test_groups_equal_the_slow_obvious_ones(texts: list[str], threshold: float) -> None:
    assert near_duplicates(texts, threshold) == slow_groups(texts, threshold)


def test_case_and_punctuation_do_not_count_and_numbers_do() -> None:
    text = "Adults start with 12 mg by mouth, once a day, at breakfast."
    assert near_duplicates([text, text.upper(), text.replace(",", "\n"), text.replace("12", "15")]) == [0, 0, 0, 1]


def test_groups_are_connected_pairs() -> None:
    words = [f"w{n}" for n in range(100)]
    chain = [" ".join(words[n : n + 60]) for n in (0, 5, 10, 15)]
    assert jaccard(shingles(chain[0]), shingles(chain[1])) >= 0.8 > jaccard(shingles(chain[0]), shingles(chain[3]))
    assert near_duplicates(["other words here", *chain]) == [0, 1, 1, 1, 1]


def test_texts_without_words_stand_alone() -> None:
    assert near_duplicates(["", "", "--", "one", "one"]) == [0, 1, 2, 3, 3]
    assert near_duplicates([]) == []


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01])
def test_thresholds_that_mean_nothing_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold is"):
        near_duplicates(["a"], threshold)


def test_many_texts_of_one_template_do_not_stall() -> None:
    """A table's rows, a form's pages: all alike, none the same."""
    form = " ".join(f"field{n}" for n in range(60))
    texts = [f"{form} name{n} {form[::-1]}" for n in range(3000)]
    assert set(near_duplicates(texts)) == {0}


def test_batches_do_not_change_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{base} number {n}" for n in range(30) for base in _BASES]
    whole = near_duplicates(texts)
    monkeypatch.setattr(duplicates, "_TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(duplicates, "_REMEMBERED_TEXTS", 2)
    assert near_duplicates(texts) == whole


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_the_bands_miss_one_pair_in_a_million(threshold: float) -> None:
    width = duplicates._band_width(threshold)
    assert (1 - threshold**width) ** (128 // width) <= 1e-6
    assert width > 1
