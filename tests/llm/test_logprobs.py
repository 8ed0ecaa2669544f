"""Pieces of a reply and their log-probabilities: whatever becomes of single tokens, the pieces join to the text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.llm.logprobs import STRIPPED, of_completion, pieces


def decoded(tokens: bytes) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(tokens).decode("utf-8", "replace")


def test_a_character_belongs_to_the_byte_that_completes_it_and_stripped_space_to_none() -> None:
    found = pieces(decoded, list(" 5 µg\n".encode()), [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0])
    assert found == (("", -1.0), ("5", -2.0), (" ", -3.0), ("", -4.0), ("µ", -5.0), ("g", -6.0), ("", -7.0))


def test_unequal_numbers_are_refused() -> None:
    for logprobs in ([-0.1], [-0.1, -0.2, -0.3]):
        with pytest.raises(ValueError, match="2 tokens and"):
            pieces(decoded, list(b"ab"), logprobs)


@given(st.text(max_size=20), st.sampled_from(["", " ", "\n", " \n "]), st.binary(max_size=3))
def test_pieces_join_to_the_stripped_text(text: str, around: str, broken: bytes) -> None:
    tokens = list((around + text + around).encode("utf-8", "replace") + broken)
    found = pieces(decoded, tokens, [-float(n) for n in range(len(tokens))])
    assert "".join(piece for piece, _ in found) == decoded(tokens).strip(STRIPPED)
    assert [logprob for _, logprob in found] == [-float(n) for n in range(len(tokens))]


@given(st.text(min_size=1, max_size=12))
def test_pieces_of_a_real_tokenizer_join_to_the_text(tokenizer, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False).input_ids

    def decode(ids):
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    found = pieces(decode, tokens, [-1.0] * len(tokens))
    assert "".join(piece for piece, _ in found) == decode(tokens).strip(STRIPPED)
    assert len(found) == len(tokens)


def token(text: str, logprob: object, **others: object) -> dict:
    return {"token": text, "logprob": logprob, **others}


def test_what_is_no_part_of_the_text_is_left_out() -> None:
    thoughts = [token("<think>", -3), token("12 mg", -3), token("</think>", -3), token("\n\n", -2)]
    answer = [token(" 12", -0.5), token(" mg", 0.0001), token("<|im_end|>", -0.25)]
    assert of_completion([*thoughts, *answer], "12 mg") == (("12", -0.5), (" mg", 0.0))
    assert of_completion(answer[:2], " 12 mg") == ((" 12", -0.5), (" mg", 0.0))
    assert of_completion([token("<|im_end|>", -0.25)], "") == ()


def test_bytes_say_what_a_token_of_half_a_character_is() -> None:
    halves = [token("\\xc2", -1, bytes=[0xC2]), token("\\xb5", -2, bytes=[0xB5]), token("g", -3, bytes=[103])]
    assert of_completion([token("5 ", -0.5, bytes=None), *halves], "5 µg") == (
        ("5 ", -0.5), ("", -1.0), ("µ", -2.0), ("g", -3.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        None, [], {}, "12 mg", [None], [token("12 mg", None)], [token("12 mg", math.nan)], [token("12 mg", -math.inf)],
        [token("12 mg", True)], [{"logprob": -1}], [{"token": "12 mg"}], [token("13 mg", -1)], [token("12", -1)],
    ],
)  # fmt: skip
def test_what_makes_no_text_gives_no_log_probabilities(content: object) -> None:
    assert of_completion(content, "12 mg") is None
