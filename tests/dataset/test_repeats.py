from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.grounding import content_words, words
from raft.dataset.repeats import NEAR_DUPLICATE, duplicates


def slow_duplicates(questions):
    kept, found = [], {}
    for key, question in questions:
        has = content_words(question)
        if any(words(question) == words(other) for other in kept):
            found[key] = "duplicate_question"
        elif any(len(has & content_words(other)) / len(has | content_words(other)) >= NEAR_DUPLICATE for other in kept):
            found[key] = "near_duplicate_question"
        else:
            kept.append(question)
    return found


WORDS = st.lists(
    st.sampled_from(["dose", "limit", "ward", "adult", "child", "mouth", "night", "first", "what", "is", "the", "of"]),
    min_size=1,
    max_size=14,
)


@given(st.lists(WORDS.map(" ".join), max_size=25))
def test_duplicates_equal_the_slow_obvious_version(texts):
    questions = [(str(n), text) for n, text in enumerate(texts)]
    assert duplicates(questions) == slow_duplicates(questions)


def test_near_duplicates_in_a_large_set():
    rng = random.Random(0)
    vocabulary = [f"word{n}" for n in range(3000)]
    questions = [(str(n), " ".join(rng.sample(vocabulary, 12))) for n in range(5_000)]
    copies = [(f"copy{n}", f"What is {questions[n][1].upper()}?") for n in range(100)]
    assert duplicates(questions + copies) == dict.fromkeys([key for key, _ in copies], "near_duplicate_question")
