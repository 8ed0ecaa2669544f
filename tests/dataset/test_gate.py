from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raft.dataset.gate import Gate, Rules
from raft.dataset.grounding import GroundedQuestion, Passage


def item(n, **changes):
    question = GroundedQuestion(
        f"q{n}", f"What is number {n}?", str(n), "number", (Passage(f"d{n}#0", f"It is {n}."),), (f"d{n}",), "teacher"
    )
    return replace(question, **changes)


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    for n in range(6):
        gate.judge(item(n), ["answer_refuses"] if n == 2 else [], "the whole reply")
    return gate


def rejected(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_accepted_questions_come_back_in_order_and_refused_ones_with_their_reasons(gate, tmp_path):
    assert list(gate) == [item(n) for n in (0, 1, 3, 4, 5)]
    assert len(gate) == 5
    gate.close()
    assert rejected(tmp_path) == [
        {
            "id": "q2", "question": "What is number 2?", "answer": "2", "question_type": "factual",
            "document_ids": ["d2"], "reasons": ["answer_refuses"], "said": "the whole reply",
        }
    ]  # fmt: skip
    assert gate.documents == {f"d{n}" for n in range(6)}


def test_personal_data_are_flagged_or_refused(tmp_path):
    mail = item(1, question="What does m.orr@sorrel.example.org prescribe?")
    for keep, kept in ((True, [item(0), replace(mail, flags=("pii_email",))]), (False, [item(0)])):
        gate = Gate(tmp_path, Rules(keep_pii=keep))
        gate.judge(item(0), [])
        gate.judge(mail, [])
        assert list(gate) == kept
        assert gate.by_rule() == ({} if keep else {"pii_email": 1})
        gate.close()


def test_a_sieve_keeps_changes_and_refuses(gate, tmp_path):
    def decide(question):
        if question.id == "q0":
            return ["duplicate_question"]
        return replace(question, reasoning="Because.") if question.id == "q4" else question

    gate.sieve(decide)
    gate.refuse_where({"q5": "answer_too_long", "q2": "never counted twice"})
    assert list(gate) == [item(1), item(3), item(4, reasoning="Because.")]
    assert gate.item("q4").reasoning == "Because."
    with pytest.raises(KeyError):
        gate.item("q0")
    assert gate.by_rule() == {"answer_refuses": 1, "duplicate_question": 1, "answer_too_long": 1}
    assert gate.refused == 3


def test_a_sieve_reads_only_those_it_is_to_go_through(gate):
    seen = []
    gate.sieve(lambda question: seen.append(question.id) or question, among={"q1", "q5", "q2"})
    assert seen == ["q1", "q5"]


def test_the_bases_are_those_of_the_accepted_questions_as_they_are_now(gate):
    gate.refuse_where({"q0": "duplicate_question"})
    gate.sieve(lambda question: replace(question, document_ids=("d1", "d9"), split="test"), among={"q1"})
    assert [basis.id for basis in gate.bases] == ["q1", "q3", "q4", "q5"] == [question.id for question in gate]
    assert gate.bases[0] == ("q1", ("d1", "d9"), ("d1#0",), "test")
    with pytest.raises(KeyError):
        gate.item("q0")


def test_a_part_that_is_refused_does_not_count_as_a_question(gate):
    gate.refuse("q1", "What is number 1?", "1", ["reasoning_empty"], counted=False)
    assert (gate.refused, gate.by_rule()["reasoning_empty"]) == (1, 1)
