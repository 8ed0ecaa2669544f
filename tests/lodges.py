"""A dataset that keeps every promise: invented lodges, a document each, questions in groups of two."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

from raft.artifacts import writing
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.prompts import REFUSAL, render_refusal, render_target
from raft.records import Chunk, Quote, RaftExample, to_row
from raft.rows import write_rows

COUNT = {"train": 40, "dev": 8, "test": 12}
DRAWS = {"train": 3, "dev": 1, "test": 1}
FRACTION = 0.8
PLACES = 4
_SYLLABLES = ("bra", "cor", "dun", "fel", "gal", "hys", "jor", "kel", "lum", "mor", "nax", "oth", "pel", "qui")


def name_of(n: int) -> str:
    rng = random.Random(n)
    return "".join(rng.choices(_SYLLABLES, k=3)).capitalize() + str(n)


def price(n: int) -> str:
    return f"{11 + 3 * n} crowns"


def lodge_chunks() -> dict[str, Chunk]:
    """Two chunks a lodge; the first holds the answer."""
    chunks = {}
    for n in range(sum(COUNT.values())):
        words = " ".join(name_of(1000 * (n + 1) + k) for k in range(12))
        texts = (
            f"The lodge of {name_of(n)} lends a lantern for {price(n)}, says {words}.",
            f"Behind the door of {name_of(n)} stand {words}, and nobody counts them twice.",
        )
        for part, text in enumerate(texts):
            document = f"lodges/{name_of(n).lower()}.md"
            chunk = Chunk(f"{document}#{part}", document, text, 200 * part, 200 * part + len(text), name_of(n))
            chunks[chunk.id] = chunk
    return chunks


def lodge_questions() -> list[GroundedQuestion]:
    splits = [split for split, count in COUNT.items() for _ in range(count)]
    return [
        GroundedQuestion(
            f"q-{n}", f"What does the lodge of {name_of(n)} take for a lantern?", price(n), "number",
            (Passage(f"lodges/{name_of(n).lower()}.md#0", f"lends a lantern for {price(n)}"),),
            (f"lodges/{name_of(n).lower()}.md",), "teacher", reasoning="That is its price.",
            reasoning_source="teacher", split=split,
        )
        for n, split in enumerate(splits)
    ]  # fmt: skip


def lodge_examples() -> dict[str, list[RaftExample]]:
    """Groups of two questions over one context of four chunks; every fifth question or so goes without its oracle."""
    found: dict[str, list[RaftExample]] = {}
    for split, draws in DRAWS.items():
        asked = [item for item in lodge_questions() if item.split == split]
        pool = [f"{item.document_ids[0]}#{part}" for item in asked for part in (0, 1)]
        for draw in range(draws):
            for at in range(0, len(asked), 2):
                found.setdefault(split, []).extend(_group(asked[at : at + 2], pool, draw))
    return found


def _group(members: list[GroundedQuestion], pool: list[str], draw: int) -> list[RaftExample]:
    rng = random.Random(f"{members[0].id}/{draw}")
    present = [rng.random() < FRACTION for _ in members]
    oracles = [item.oracle_ids[0] for item in members]
    context = [name for name, here in zip(oracles, present, strict=True) if here]
    context += rng.sample([name for name in pool if name not in oracles], PLACES - len(context))
    rng.shuffle(context)
    return [
        RaftExample(
            f"{item.id}@{draw}", item.id, item.question, item.answer if here else REFUSAL,
            _target(item, context) if here else render_refusal(), item.answer_type, tuple(context), item.oracle_ids,
            here, f"d{draw}-{members[0].id}", draw,
        )
        for item, here in zip(members, present, strict=True)
    ]  # fmt: skip


def _target(item: GroundedQuestion, context: list[str]) -> str:
    quotes = [Quote(quote.text, context.index(quote.chunk_id) + 1) for quote in item.quotes]
    return render_target(item.answer, item.reasoning, quotes)


def write_lodges(
    folder: Path,
    examples: dict[str, list[RaftExample]] | None = None,
    questions: list[GroundedQuestion] | None = None,
    rejected: list[dict] | None = None,
    facts: dict | None = None,
) -> Path:
    """The dataset as an artefact, or one made of other rows."""
    with writing(folder, "dataset", {"context": {"oracle_fraction": FRACTION}}, {}) as draft:
        for split, rows in (examples or lodge_examples()).items():
            write_rows(draft.folder / f"{split}.jsonl", map(to_row, rows))
        write_rows(draft.folder / "chunks.jsonl", map(to_row, lodge_chunks().values()))
        write_rows(draft.folder / "questions.jsonl", map(asdict, questions or lodge_questions()))
        write_rows(draft.folder / "rejected.jsonl", rejected or [])
        draft.facts.update(facts or {"labels": []})
    return folder
