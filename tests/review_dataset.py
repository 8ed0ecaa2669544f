"""A dataset of wards and their keys, small enough to review by heart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raft.artifacts import writing
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.targets import TargetForm, target_of
from raft.prompts import REFUSAL
from raft.records import Chunk, RaftExample, to_row
from raft.rows import write_rows

WARDS = ("Ash", "Birch", "Cedar", "Elm", "Fir", "Hazel")
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
RECIPE = {
    "quality": {"min_question_words": 4, "max_question_words": 60, "max_answer_words": 60, "min_answer_overlap": 0.5},
}


def chunks() -> list[Chunk]:
    """One of each ward, whose words hold characters outside the basic plane in front of the quote."""
    texts = [
        f"💊 The {ward} ward keeps its spare keys in cupboard {40 + n}.\nAsk there." for n, ward in enumerate(WARDS)
    ]
    texts.append(f"The old ward is closed. {HOSTILE}")
    return [Chunk(f"wards/{n}.md#0", f"wards/{n}.md", t, 0, len(t), "Wards", ("Keys",)) for n, t in enumerate(texts)]


def questions() -> list[GroundedQuestion]:
    """Ward n's cupboard: 0 to 3 train, 4 dev; the last has no answer. Ward 1 is flagged, and is a yes/no question's."""
    made = [
        GroundedQuestion(
            f"q/{n}", f"In which cupboard does the {ward} ward keep its spare keys?", f"cupboard {40 + n}", "number",
            (Passage(f"wards/{n}.md#0", f"The {ward} ward keeps its spare keys in cupboard {40 + n}."),),
            (f"wards/{n}.md",), "qa", aliases=(str(40 + n),), reasoning="The keys lie there.",
            reasoning_source="long_answer", split="dev" if n == 4 else "train", question_type="numeric",
        )
        for n, ward in enumerate(WARDS[:5])
    ]  # fmt: skip
    made[1] = replace(made[1], flags=("pii_email",))
    lost = GroundedQuestion("u/0", f"Who painted the doors? {HOSTILE}", "", "unanswerable", (), (), "qa", split="train")
    return [*made, replace(lost, question_type="unanswerable")]


def examples(form: TargetForm = "quotes", draws: int = 2) -> dict[str, list[RaftExample]]:
    """Groups of two questions over four chunks; in each group the second one goes without its oracle at times."""
    items = questions()
    ids = [chunk.id for chunk in chunks()]
    found: dict[str, list[RaftExample]] = {"train": [], "dev": []}
    train = [item for item in items if item.split == "train"]
    for draw in range(draws):
        for group, members in enumerate(zip(train[::2], [*train[1::2], None], strict=False)):
            context = (ids[6], *(name for item in members[:1] for name in item.oracle_ids), ids[5])
            if draw == 0 and members[1] is not None:
                context += members[1].oracle_ids
            found["train"] += [_example(item, context, f"d{draw}-{group}", draw, form) for item in members if item]
    found["dev"].append(_example(items[4], (ids[4], ids[6]), "d0-dev", 0, form))
    return found


def _example(item: GroundedQuestion, context: tuple[str, ...], group: str, draw: int, form: TargetForm) -> RaftExample:
    present = any(name in context for name in item.oracle_ids)
    answer, titles = item.answer if present else REFUSAL, ["Wards"] * len(context)
    target = target_of(item, context, present, refuse=True, form=form, titles=titles)
    return RaftExample(
        f"{item.id}@{draw}", item.id, item.question, answer, target, item.answer_type, context, item.oracle_ids,
        present, group, draw,
    )  # fmt: skip


def write_review_dataset(
    out: Path, items: list[GroundedQuestion] | None = None, form: TargetForm = "quotes"
) -> Path:  # fmt: skip
    """The dataset as an artefact; ``items`` take the place of its questions."""
    rows = examples(form)
    recipe = RECIPE | {"context": {"oracle_absent": "refuse", "reasoning": form}}
    with writing(out, "dataset", recipe, {"index": "f1" * 32}) as draft:
        for split, made in rows.items():
            write_rows(draft.folder / f"{split}.jsonl", map(to_row, made))
        write_rows(draft.folder / "chunks.jsonl", map(to_row, chunks()))
        write_rows(draft.folder / "questions.jsonl", map(to_row, items or questions()))
        write_rows(draft.folder / "rejected.jsonl", [{"id": "lost", "question": "?", "answer": "", "reasons": ["x"]}])
        (draft.folder / "README.md").write_text("# A card\n")
        (draft.folder / "notes.txt").write_text("kept as it is\n")
        draft.facts = {
            "questions": {"train": 5, "dev": 1}, "examples": {split: len(made) for split, made in rows.items()},
            "groups": 7, "refused": 1, "refused_by_rule": {"x": 1}, "reasoning": {"long_answer": 5, "none": 1},
            "oracle_share": 1.0, "labels": ["ward"], "teacher": None,
        }  # fmt: skip
    return out
