"""Small artefacts written the way the verbs write them."""

from __future__ import annotations

from pathlib import Path

from raft.artifacts import writing
from raft.prompts import render_target
from raft.records import Chunk, Quote, RaftExample, to_row
from raft.rows import write_rows

COLOURS = ("red", "blue", "green", "white", "black", "amber", "violet", "grey")


def colour_chunks() -> list[Chunk]:
    texts = [f"The door of ward {n} is {colour}." for n, colour in enumerate(COLOURS)]
    return [Chunk(f"doors#{n}", "doors", text, 0, len(text), "Doors") for n, text in enumerate(texts)]


def colour_examples(draws: int = 2, per_group: int = 2) -> list[RaftExample]:
    """A learnable task: read a door's colour off the right one of three documents."""
    chunks = colour_chunks()
    examples = []
    for draw in range(draws):
        for group in range(0, len(chunks), per_group):
            members = chunks[group : group + per_group]
            context = [*members, chunks[(group + per_group + draw) % len(chunks)]]
            for oracle in members:
                n = chunks.index(oracle)
                example = RaftExample(
                    id=f"q{n}/{draw}",
                    question_id=f"q{n}",
                    question=f"What colour is the door of ward {n}?",
                    answer=COLOURS[n],
                    target=render_target(COLOURS[n], "", [Quote(oracle.text, context.index(oracle) + 1)]),
                    answer_type="short",
                    context=tuple(chunk.id for chunk in context),
                    oracle_ids=(oracle.id,),
                    oracle_present=True,
                    group=f"{draw}:{group}",
                    draw=draw,
                )
                examples.append(example)
    return examples


def write_dataset(folder: Path, examples: list[RaftExample] | None = None, dev: bool = True) -> Path:
    """A finished dataset artefact with a train split and, if asked for, a dev split."""
    train = colour_examples() if examples is None else examples
    with writing(folder, "dataset", {}, {}) as draft:
        write_rows(draft.folder / "train.jsonl", map(to_row, train))
        if dev:
            write_rows(draft.folder / "dev.jsonl", (to_row(e) for e in train if e.draw == 0))
        write_rows(draft.folder / "chunks.jsonl", map(to_row, colour_chunks()))
        asked = {e.question_id: e.question for e in train}
        rows = [{"question": question, "document_ids": ["doors"], "split": "train"} for question in asked.values()]
        write_rows(draft.folder / "questions.jsonl", rows)
        draft.facts["index_fingerprint"] = "none"
    return folder
