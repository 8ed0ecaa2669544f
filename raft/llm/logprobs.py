"""A reply's tokens as pieces of its text, each with its log-probability.

    pieces(decode, [33, 34, 36, 216], [-0.1, -0.3, -0.02, -1.2])      ("12 mg" and a space that is stripped)
        -> (("1", -0.1), ("2", -0.3), (" mg", -0.02), ("", -1.2))
    of_completion([{"token": "12 mg", "logprob": -0.1}, {"token": "<|im_end|>", "logprob": -0.01}], "12 mg")
        -> (("12 mg", -0.1),)

The pieces join to the text, whatever becomes of single tokens in it: a character of several tokens belongs to the token
that completes it, and what is stripped belongs to none.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raft.llm.chat import TokenLogprobs

STRIPPED = "\n "  # around every reply of a model in this process


def pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], logprobs: Sequence[float]) -> TokenLogprobs:
    """The pieces of ``decode(tokens)``, stripped, one a token. Raises ValueError on unequal lengths."""
    if len(tokens) != len(logprobs):
        raise ValueError(f"{len(tokens)} tokens and {len(logprobs)} log-probabilities; expected equal numbers")
    whole = decode(tokens)
    text = whole.strip(STRIPPED)
    lead = len(whole) - len(whole.lstrip(STRIPPED))
    ends = [min(max(0, end - lead), len(text)) for end in _ends(decode, tokens, whole)]
    return tuple((text[a:b], float(one)) for a, b, one in zip([0, *ends][:-1], ends, logprobs, strict=True))


def _ends(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], whole: str) -> list[int]:
    """Where in ``whole`` each token ends; one that does not end a character ends where the one before does.

    Decoded are only the tokens since the last two ends: what a token says may hang on the one before it, and decoding
    all of them for each would take the square of their number.
    """
    ends: list[int] = []
    settled = begin = end = 0  # text up to ``settled`` is that of the tokens up to ``end``; ``begin`` is the end before
    for count in range(1, len(tokens) + 1):
        known = len(decode(tokens[begin:end]))
        said = decode(tokens[begin:count])[known:]
        if whole.startswith(said, settled) and not said.endswith("\ufffd"):
            settled, begin, end = settled + len(said), end, count
        ends.append(settled)
    return [*ends[:-1], len(whole)] if ends else []


def of_completion(content: Any, text: str) -> TokenLogprobs | None:
    """The pieces of ``text`` in what an endpoint gives as ``choices[0].logprobs.content``; None where that is no list
    of tokens with log-probabilities, or its tokens do not make the text.

    Servers also list what is no part of the text: the end-of-turn token, the thoughts before it, space around it.
    """
    if not isinstance(content, list) or not content or not all(_is_token(each) for each in content):
        return None
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    said = [utf8.decode(bytes(each["bytes"])) if _has_bytes(each) else each["token"] for each in content]
    begin = "".join(said).rfind(text)
    if begin < 0:
        return None
    found, at = [], -begin  # where a token begins, in the text
    for piece, each in zip(said, content, strict=True):
        low, high = max(0, at), min(len(text), at + len(piece))
        at += len(piece)
        if low < high or (not piece and 0 < at < len(text)):
            found.append((text[low:high], min(0.0, float(each["logprob"]))))
    return tuple(found)


def _is_token(each: Any) -> bool:
    if not isinstance(each, Mapping) or not isinstance(each.get("token"), str):
        return False
    value = each.get("logprob")
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _has_bytes(each: Mapping[str, Any]) -> bool:
    values = each.get("bytes")
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 256 for value in values)
