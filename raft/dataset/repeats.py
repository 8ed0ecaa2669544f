"""Questions that repeat an earlier one, in the same words or nearly."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from raft.dataset.grounding import content_words, words

NEAR_DUPLICATE = 0.9  # Jaccard similarity of content words


def duplicates(questions: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The ids of (id, question) pairs that repeat an earlier one -> "duplicate_question" (same words) or
    "near_duplicate_question" (Jaccard similarity of content words at least ``NEAR_DUPLICATE``).

    Prefix filtering (Chaudhuri et al. 2006): two sets that are so similar share one of their few rarest words,
    so only questions that do are compared.
    """
    rarity = Counter(word for _, question in questions for word in content_words(question))
    seen: set[tuple[str, ...]] = set()
    by_rare_word: dict[str, list[frozenset[str]]] = defaultdict(list)
    found: dict[str, str] = {}
    for key, question in questions:
        exact, has = tuple(words(question)), content_words(question)
        rarest = sorted(has, key=lambda word: (rarity[word], word))[
            : len(has) - math.ceil(NEAR_DUPLICATE * len(has)) + 1
        ]
        if exact in seen:
            found[key] = "duplicate_question"
        elif any(_jaccard(has, other) >= NEAR_DUPLICATE for word in rarest for other in by_rare_word[word]):
            found[key] = "near_duplicate_question"
        else:
            seen.add(exact)
            for word in rarest:
                by_rare_word[word].append(has)
    return found


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
