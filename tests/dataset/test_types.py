"""raft generate with every type of question, distractor policy, target form and language, over a small corpus."""

from __future__ import annotations

import json
import re

import pytest
from stand_in import DRUGS, WordIndex, dose, monograph

from raft.config_generate import GenerateRecipe
from raft.dataset.build import generate_dataset
from raft.dataset.check import check_dataset
from raft.dataset.collect import QuestionPlan
from raft.errors import InputError, RecipeError, UsageError
from raft.llm.scripted import ScriptedModel
from raft.prompts import parse_answer, render_refusal, render_target
from raft.records import Document, Quote
from raft.rows import read_rows


def recipe_of(**changes):
    return GenerateRecipe.model_validate(
        {"teacher": {"model": "scripted"}, "context": {"distractors": 3, "draws": 2}} | changes
    )


def drug_in(text):
    return next(drug for drug in DRUGS if drug in text)


def teach(request):
    """Asks about the doses of a document's drug, about both of two documents, or for what no document says."""
    asked = request.messages[-1].content
    if request.key.startswith("questions/"):
        drug = drug_in(asked)
        if "Document [2]" in asked:
            both = "adults" in asked and "children" in asked
            asks = [f"What are the first doses of {drug} in adults and in children?"] if both else []
            return json.dumps({"questions": asks})
        if "does not answer" in asked:
            return json.dumps({"questions": [f"What does {drug} cost the patient?", f"How is {drug} given to adults?"]})
        asks = (
            f"Is {drug} given to adults by mouth?"
            if "Ask for facts" not in asked
            else f"How is {drug} given to adults?"
        )
        return json.dumps({"questions": [asks]})
    text, question = asked.rsplit("\n\nQuestion: ", 1)
    drug = drug_in(question)
    adults = (
        f"{drug} is given to adults of the Sorrel Hospital as a first dose of {dose(DRUGS.index(drug))} mg by mouth."
    )
    if "cost" in question or adults not in text:
        return render_refusal()
    place = int(re.findall(r"Document \[(\d)\]", text[: text.index(adults)])[-1])
    if question.startswith("What are"):
        children = re.search(rf"In children {drug} is started with \d+ mg", text)
        if children is None:
            return render_refusal()
        other = int(re.findall(r"Document \[(\d)\]", text[: children.start()])[-1])
        doses = f"{dose(DRUGS.index(drug))} mg and {dose(DRUGS.index(drug)) // 2} mg"
        return render_target(doses, "", [Quote(adults, place), Quote(children.group(), other)])
    said = "Yes, by mouth." if question.startswith("Is") else "by mouth"
    return render_target(said, "It is said there.", [Quote(adults, place)])


def rows_of(folder, name):
    path = folder / f"{name}.jsonl"
    return list(read_rows(path)) if path.exists() else []


def made(folder, index, **changes):
    generate_dataset(recipe_of(**changes), index, folder / "dataset", ScriptedModel(teach))
    assert all(finding.holds for finding in check_dataset(folder / "dataset"))
    return rows_of(folder / "dataset", "questions")


def test_yes_and_no(index, tmp_path):
    questions = made(tmp_path, index, questions={"types": {"yesno": 1}})
    assert len(questions) == 10  # one of each three chunks speaks of adults
    assert {(q["question_type"], q["answer"], q["answer_type"]) for q in questions} == {("yesno", "yes", "yesno")}


def test_questions_over_two_chunks_quote_both(index, tmp_path):
    questions = made(tmp_path, index, questions={"types": {"multihop": 1}})
    assert questions
    for question in questions:
        assert question["question_type"] == "multihop"
        assert len({quote["chunk_id"] for quote in question["quotes"]}) == 2
        assert len(question["document_ids"]) == 1  # the partner is sought in the same document first
    refused = {reason for row in rows_of(tmp_path / "dataset", "rejected") for reason in row["reasons"]}
    assert refused <= {"no_question", "duplicate_question"}


def test_unanswerable_questions_are_those_that_the_teacher_refuses_over_the_best_chunks(index, tmp_path):
    questions = made(tmp_path, index, questions={"types": {"unanswerable": 0.5, "yesno": 0.5}})
    lost = [q for q in questions if q["question_type"] == "unanswerable"]
    assert lost
    assert all("cost" in q["question"] and q["answer"] == "" and not q["quotes"] for q in lost)
    answered = [r for r in rows_of(tmp_path / "dataset", "rejected") if r["reasons"] == ["unanswerable_is_answered"]]
    assert answered
    assert all("How is" in row["question"] and row["document_ids"] for row in answered)
    for row in rows_of(tmp_path / "dataset", "train"):
        if "cost" in row["question"]:
            assert parse_answer(row["target"]).abstained


def test_shares_of_types_are_as_asked():
    plan = QuestionPlan(1, {"factual": 3.0, "numeric": 1.0, "yesno": 0.0}, None, None, True, "asked", 7)
    drawn = [plan.kind_of(f"chunk {n}") for n in range(4000)]
    assert set(drawn) == {"factual", "numeric"}
    assert 0.72 < drawn.count("factual") / 4000 < 0.78
    assert drawn == [plan.kind_of(f"chunk {n}") for n in range(4000)]


def test_a_store_of_one_chunk_has_nothing_to_compare(tmp_path):
    index = WordIndex([Document("one.md", monograph(0, "Alvoran").text.split("\n\n")[0], title="Alvoran")])
    recipe = recipe_of(questions={"types": {"comparison": 1}}, context={"distractors": 0}, split={"dev": 0, "test": 0})
    generate_dataset(recipe, index, tmp_path / "dataset", ScriptedModel(teach))
    assert [q["question_type"] for q in rows_of(tmp_path / "dataset", "questions")] == ["factual"]


@pytest.mark.parametrize("policy", ["random", "hard", "same_document", "counterfactual", "mixed"])
def test_every_policy_makes_a_dataset_that_keeps_its_word(index, tmp_path, policy):
    mix = {"hard": 1, "same_document": 1, "counterfactual": 1}
    context = {"distractors": 3, "policy": policy, "mix": mix}
    questions = made(tmp_path, index, questions={"types": {"yesno": 1}}, context=context)
    chunks = {row["id"]: row for row in rows_of(tmp_path / "dataset", "chunks")}
    used = [name for row in rows_of(tmp_path / "dataset", "train") for name in row["context"]]
    assert set(used) <= set(chunks)
    edits = [name for name in used if "~edit" in name]
    assert bool(edits) == (policy in ("counterfactual", "mixed"))
    for name in edits:
        oracle, owner, _ = name.split("~")
        assert chunks[name]["text"] != chunks[oracle]["text"]
        assert owner in {question["id"] for question in questions}


@pytest.mark.parametrize(("form", "words"), [("plain", "<ANSWER>: yes"), ("noise", "do not hold the answer")])
def test_the_form_of_the_reasoning_is_a_setting(index, tmp_path, form, words):
    made(tmp_path, index, questions={"types": {"yesno": 1}}, context={"distractors": 2, "reasoning": form})
    shown = [row["target"] for row in rows_of(tmp_path / "dataset", "train") if row["oracle_present"]]
    assert shown
    assert all(words in target and parse_answer(target).final == "yes" for target in shown)


def test_language_schema_and_own_prompts_reach_the_teacher(index, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    ask = "{documents}\\n\\nStelle {count} Fragen. Sprache: {language}"
    (folder / "yesno.toml").write_text(f'system = "Du fragst."\nask = "{ask}"\nanswer_hint = "Nur ja oder nein."\n')
    model = ScriptedModel(teach)
    asked = {"types": {"yesno": 1}, "language": "German", "prompts": folder, "per_chunk": 3}
    generate_dataset(recipe_of(questions=asked), index, tmp_path / "dataset", model)
    first = model.requests[0]
    assert first.schema is not None
    assert first.messages[-1].content.endswith("Stelle 3 Fragen. Sprache: German")
    answers = [request for request in model.requests if request.key.startswith("answers/")]
    assert all(request.schema is None and "Nur ja oder nein." in request.messages[-1].content for request in answers)
    plain = ScriptedModel(teach)
    generate_dataset(recipe_of(questions=asked | {"structured": False}), index, tmp_path / "other", plain)
    assert plain.requests[0].schema is None


def test_answers_come_first_for_small_teachers(index, tmp_path):
    """It asks for the amount that it is shown, the second time with all that the sentence says, and gives another one
    when asked about Estradek."""

    def small(request):
        asked = request.messages[-1].content
        if request.key.startswith("questions"):
            again = request.key.startswith("questions again/")
            drug, child = drug_in(asked), "children" in asked.split("Sentence:")[1].split("Answer:")[0]
            asks = asked.partition("It asks with the words: ")[2].partition("\n")[0] or "What"
            if not again:
                return f"{asks} of {drug} are the dose in {'children' if child else 'adults'}?"
            whole = f"is {drug} started in children, where the ward pharmacist checks the weight twice"
            return (
                f"{asks} {whole if child else f'of {drug} is a first dose by mouth for adults of the Sorrel Hospital'}?"
            )
        question = asked.rsplit("\n\nQuestion: ", 1)[1]
        n = DRUGS.index(drug_in(question))
        if drug_in(question) == "Estradek":
            return "99 mg"
        return f"{dose(n) if 'adults' in question else dose(n) // 2} mg"

    recipe = recipe_of(questions={"style": "answer_first", "per_chunk": 1}, quality={"min_quote_overlap": 1.0})
    model = ScriptedModel(small)
    generate_dataset(recipe, index, tmp_path / "dataset", model)
    questions = rows_of(tmp_path / "dataset", "questions")
    doses = [q for q in questions if q["answer"].endswith(" mg")]
    assert len(doses) >= 16
    told = [request.messages[-1].content for request in model.requests if request.key.startswith("questions again/")]
    assert any('Keep these words of the sentence: "started", "ward"' in each for each in told)
    for question in doses:
        assert question["answer"] in question["quotes"][0]["text"]
        assert question["question_type"] == "numeric"
    refused = [row for row in rows_of(tmp_path / "dataset", "rejected") if "Estradek" in row["question"]]
    reasons = {tuple(row["reasons"]) for row in refused}
    assert ("oracle_does_not_answer",) in reasons <= {("oracle_does_not_answer",), ("question_leaves_out",)}


def test_settings_that_cannot_be_met_are_refused(index, tmp_path):
    with pytest.raises(UsageError, match="round_trip"):
        changed = {"teacher": None, "from_qa": tmp_path / "q.jsonl", "quality": {"round_trip": "both"}}
        generate_dataset(recipe_of(**changed), index, tmp_path / "dataset")
    with pytest.raises(UsageError, match="judge"):
        generate_dataset(recipe_of(quality={"judge": {"model": "m"}}), index, tmp_path / "d", ScriptedModel(teach))
    with pytest.raises(RecipeError, match="unknown file"):
        (tmp_path / "prompts").mkdir()
        (tmp_path / "prompts" / "facts.toml").write_text("system = 'x'")
        recipe = recipe_of(questions={"prompts": tmp_path / "prompts"})
        generate_dataset(recipe, index, tmp_path / "dataset", ScriptedModel(teach))


def test_labels_of_refused_questions_documents_guard_the_dataset_too(tmp_path):
    """rejected.jsonl holds words of every document that was asked about."""
    documents = [monograph(n, drug) for n, drug in enumerate(DRUGS)]
    secret = Document("secret.md", "The vault of Alvoran has the code that nobody says, and it is kept in the tower.",
                      title="Alvoran vault", metadata={"labels": ["board"]})  # fmt: skip
    index = WordIndex([*documents, secret])
    from raft.artifacts import open_artifact

    generate_dataset(recipe_of(questions={"types": {"yesno": 1}}), index, tmp_path / "dataset", ScriptedModel(teach))
    assert open_artifact(tmp_path / "dataset", "dataset").facts["labels"] == ["board"]


@pytest.mark.parametrize("named", ["model", "adapter"])
def test_labels_of_what_the_teacher_was_tuned_on_guard_the_dataset_too(named, index, tmp_path):
    """It may say what it has read there."""
    from raft.artifacts import open_artifact, writing

    with writing(tmp_path / "run", "adapter", {}, {}) as draft:
        draft.facts |= {"labels": ["board"]}
    for teacher, labels in (
        ({named: str(tmp_path / "run")}, ["board"]),
        ({named: str(tmp_path / "run"), "base_url": "http://localhost:1/v1"}, []),  # no run of this machine
    ):
        out = tmp_path / f"dataset-{len(labels)}"
        recipe = recipe_of(teacher={"model": "scripted"} | teacher, questions={"types": {"yesno": 1}})
        generate_dataset(recipe, index, out, ScriptedModel(teach))
        assert open_artifact(out, "dataset").facts["labels"] == labels


def test_words_of_two_documents_name_both_and_need_quotes_of_both(index, tmp_path):
    """A comparison that quotes one of its two documents would teach to compare with what is not there."""

    def lopsided(request):
        said = teach(request)
        if request.key.startswith("questions/"):
            drug = drug_in(request.messages[-1].content)
            return json.dumps({"questions": [f"Is the first dose of {drug} larger in adults than in children?"]})
        return said

    recipe = recipe_of(questions={"types": {"comparison": 0.5, "yesno": 0.5}})
    generate_dataset(recipe, index, tmp_path / "dataset", ScriptedModel(lopsided))
    assert {q["question_type"] for q in rows_of(tmp_path / "dataset", "questions")} == {"yesno"}
    reasons = {reason for row in rows_of(tmp_path / "dataset", "rejected") for reason in row["reasons"]}
    assert "comparison_single_chunk" in reasons


def test_edits_never_come_near_another_document(tmp_path):
    """Monographs off one template: an edit that takes a sibling's name would be the sibling with a false dose."""
    documents = [
        Document(f"{drug.lower()}.md", f"{drug} is given to adults of the Sorrel Hospital as a first dose of {dose(n)} "
                 "mg by mouth, and nobody gives more than that in one night.", title=drug)
        for n, drug in enumerate(DRUGS)
    ]  # fmt: skip
    rows = [
        {"id": f"q{n}", "question": f"What is the first dose of {drug} in adults?", "answer": f"{dose(n)} mg",
         "answer_type": "number", "gold_doc_ids": [f"{drug.lower()}.md"], "split": "test" if n % 3 == 0 else "train"}
        for n, drug in enumerate(DRUGS)
    ]  # fmt: skip
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    context = {"distractors": 2, "policy": "counterfactual"}
    recipe = recipe_of(teacher=None, from_qa=path, from_qa_splits=["train", "test"], context=context)
    generate_dataset(recipe, WordIndex(documents), tmp_path / "dataset")
    assert all(finding.holds for finding in check_dataset(tmp_path / "dataset"))


def test_a_half_character_in_a_reply_harms_nothing(index, tmp_path):
    def torn(request):
        said = teach(request)
        half = "\ud83d" if "Alvoran" in said else "\\ud83d"  # in the reply itself, or in the JSON in it
        return said.replace("adults", f"adults {half}") if request.key.startswith("questions/") else said

    generate_dataset(recipe_of(questions={"types": {"yesno": 1}}), index, tmp_path / "dataset", ScriptedModel(torn))
    assert any("\ufffd" in row["question"] for row in rows_of(tmp_path / "dataset", "questions"))


def test_gold_documents_that_the_index_lacks_are_passed_over(index, tmp_path):
    row = {"id": "q", "question": "What is the first dose of Alvoran in adults?", "answer": f"{dose(0)} mg",
           "gold_doc_ids": ["alvoran.md", "elsewhere.md"], "split": "train"}  # fmt: skip
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(row) + "\n")
    summary = generate_dataset(recipe_of(teacher=None, from_qa=path), index, tmp_path / "dataset")
    assert summary.questions == {"train": 1}


def test_one_document_that_falls_to_test_is_said(tmp_path):
    index = WordIndex([monograph(0, "Alvoran")])
    said = set()
    for seed in range(12):
        recipe = recipe_of(
            questions={"types": {"yesno": 1}}, context={"distractors": 0}, seed=seed, split={"dev": 0.3, "test": 0.3}
        )
        try:
            generate_dataset(recipe, index, tmp_path / f"dataset{seed}", ScriptedModel(teach))
            said.add("")
        except InputError as error:
            said.add(str(error))
    assert len(said) == 2
    assert any("falls to train" in each for each in said)
