from __future__ import annotations

import json

import pytest
from stand_in import DRUGS, WordIndex, dose, monograph

from raft.dataset.gate import Gate
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.near import NearMisses
from raft.dataset.quality import also_answers
from raft.dataset.teacher import Teacher
from raft.dataset.verify import Checks, entail, flag, judge, round_trip
from raft.llm.replies import Replies
from raft.llm.scripted import ScriptedModel
from raft.prompts import render_refusal, render_target
from raft.records import Quote


def silent(stage, done, total, note=""):
    pass


def question(n, **changes):
    drug = DRUGS[n]
    text = f"{drug} is given to adults of the Sorrel Hospital as a first dose of {dose(n)} mg by mouth."
    row = {
        "id": f"q{n}", "question": f"What is the first dose of {drug} in adults?", "answer": f"{dose(n)} mg",
        "answer_type": "number", "quotes": (Passage(f"{drug.lower()}.md#0", text),),
        "document_ids": (f"{drug.lower()}.md",), "source": "teacher",
    }  # fmt: skip
    return GroundedQuestion(**row | changes)


@pytest.fixture
def index():
    return WordIndex([monograph(n, drug) for n, drug in enumerate(DRUGS)])


def gate_of(folder, items):
    gate = Gate(folder)
    for item in items:
        gate.judge(item, [])
    return gate


def near_of(index, gate, k=8):
    with NearMisses(index, k) as misses:
        return misses.of([(item.id, item.question) for item in gate], silent)


def asking(folder, script):
    model = ScriptedModel(script)
    return model, Teacher(model, Replies(folder / "replies.sqlite"), max_tokens=64)


def reasons(folder, gate):
    gate.close()
    return {row["id"]: row["reasons"] for row in map(json.loads, (folder / "rejected.jsonl").open())}


def test_near_misses_searched_in_the_background_are_those_searched_at_once(index, tmp_path):
    gate = gate_of(tmp_path, [question(n) for n in range(6)])
    pairs = [(item.id, item.question) for item in gate]
    with NearMisses(index, 5) as misses:
        misses.begin([*pairs[:4], ("refused later", "What else is there?")])
        found = misses.of(pairs, silent)
    assert found == near_of(index, gate, 5)
    assert found["q0"][0] == "alvoran.md#0"


def test_a_search_that_fails_in_the_background_is_told(index):
    class Broken(WordIndex):
        def search(self, queries, k, mode="fused"):
            raise OSError("disk gone")

    with NearMisses(Broken([monograph(0, "Alvoran")]), 5) as misses:
        with pytest.raises(OSError, match="disk gone"):  # the encoder is tried before anything is searched
            misses.begin([("q", "What?")])
        with pytest.raises(OSError, match="disk gone"):
            misses.of([("q", "What?")], silent)


def test_unfound_oracles_are_flagged_or_refused(index, tmp_path):
    lost = question(1, id="lost", question="Which amount comes first?")
    near = {"q0": ("alvoran.md#0",), "lost": ("alvoran.md#0", "bentrazol.md#0")}
    gate = gate_of(tmp_path, [question(0), lost])
    flag(gate, near, Checks(2, True, "off"))
    assert [item.flags for item in gate] == [(), ()]
    flag(gate, near, Checks(1, True, "off"))
    assert [item.flags for item in gate] == [(), ("oracle_not_retrieved",)]
    flag(gate, near, Checks(1, False, "off"))
    assert [item.id for item in gate] == ["q0"]
    assert reasons(tmp_path, gate) == {"lost": ["oracle_not_retrieved"]}


def teacher_who_reads(request):
    """Answers a dose question from the document that names the drug; knows Estradek's dose by heart."""
    text, asked = request.messages[-1].content.rsplit("\n\nQuestion: ", 1)
    for n, drug in enumerate(DRUGS):
        if drug in asked:
            sentence = f"{drug} is given to adults of the Sorrel Hospital as a first dose of {dose(n)} mg by mouth."
            if drug == "Estradek" or (sentence in text and drug != "Dunamil"):
                return render_target(f"{dose(n)} mg", "", [Quote(sentence, 1)])
    return render_refusal()


@pytest.mark.parametrize(
    ("sides", "refused"),
    [
        ("off", {}),
        ("oracle", {"q3": ["oracle_does_not_answer"]}),
        ("both", {"q3": ["oracle_does_not_answer"], "q4": ["distractors_answer"]}),
    ],
)
def test_the_teacher_must_answer_again_with_its_oracle_and_not_without(index, tmp_path, sides, refused):
    gate = gate_of(tmp_path, [question(n) for n in range(8)])
    near = near_of(index, gate)
    answers = also_answers(gate.item, lambda name: index.chunk(name).text, {})
    model, teacher = asking(tmp_path, teacher_who_reads)
    round_trip(gate, near, answers, index, teacher, Checks(10, True, sides), silent)
    assert len(model.requests) == 8 * {"off": 0, "oracle": 1, "both": 2}[sides]
    for request in model.requests:
        assert request.messages[-1].content.count("Document [") in (3, 4)
    assert reasons(tmp_path, gate) == refused


def test_entailment_refuses_what_the_model_scores_low(index, tmp_path):
    class Stern:
        name = "stern"

        def scores(self, pairs):
            return [0.1 if "Alvoran" in claim else 0.9 for _, claim in pairs]

    lost = question(0, id="none", answer="", answer_type="unanswerable", quotes=())
    gate = gate_of(tmp_path, [question(0), question(1), lost])
    entail(gate, index, Stern(), 0.5, silent)
    assert [item.id for item in gate] == ["q1", "none"]
    assert reasons(tmp_path, gate) == {"q0": ["answer_not_entailed"]}


def test_a_judge_refuses_and_an_unreadable_verdict_is_no_acceptance(index, tmp_path):
    def script(request):
        said = request.messages[-1].content
        if "Alvoran" in said:
            return json.dumps({"supported": False, "answers": True, "clear": True, "reason": "another dose"})
        return "hm" if "Bentrazol" in said else json.dumps({"supported": True, "answers": True, "clear": True})

    gate = gate_of(tmp_path, [question(n) for n in range(3)])
    model, reader = asking(tmp_path, script)
    judge(gate, index, reader, silent)
    assert all(request.schema for request in model.requests)
    assert reasons(tmp_path, gate) == {"q0": ["judge_not_supported"], "q1": ["judge_unreadable"]}
