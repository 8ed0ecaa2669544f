"""Files damaged at random end in one outcome, never in another error or a dead process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.readers.source import read_source
from tests.readers.files import make_docx, make_pdf, make_zip, members_of, outcomes_of
from tests.readers.test_formats import SAMPLES
from tests.readers.test_xml import JATS

GOOD = SAMPLES | {
    "pdf": make_pdf([["Some words."] * 5] * 2),
    "html": ("<h1>T</h1>" + "<div>" * 50 + "<table><tr><td>x</td></tr></table>" * 20).encode(),
    "xml": JATS.encode(), "md": b"---\ntitle: A\nlabels: [a]\n---\n# Words\n", "csv": b"id,text\n1,Words\n",
    "jsonl": b'{"id": "a", "text": "Words", "labels": ["a"]}',
}  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    cut = bytearray(data[: draw.randint(1, len(data))] if draw.random() < 0.3 else data)
    for _ in range(draw.randint(1, 30)):
        cut[draw.randrange(len(cut))] = draw.randrange(256)
    return bytes(cut)


def damaged_inside(data: bytes, draw: random.Random) -> bytes:
    """A zip archive that is whole, but one of whose members is not: what the check of archives lets through."""
    members = members_of(data)
    name = draw.choice([name for name, content in members.items() if content])
    return make_zip(members | {name: damaged(members[name], draw)})


def test_random_damage_is_one_outcome(tmp_path: Path) -> None:
    draw = random.Random(1)
    for kind, data in GOOD.items():
        for number in range(12):
            (tmp_path / f"{number}.{kind}").write_bytes(damaged(data, draw))
            if data.startswith(b"PK"):
                (tmp_path / f"inside{number}.{kind}").write_bytes(damaged_inside(data, draw))
    count = 0
    for file in read_source(tmp_path):
        count += 1
        assert file.outcomes
        for outcome in file.outcomes:
            assert (outcome.document is not None) == (outcome.status == "indexed")
            assert outcome.document is None or outcome.document.text.strip()
            assert outcome.status == "indexed" or outcome.reason
        rows = any("#" in outcome.source for outcome in file.outcomes)
        assert rows or len(file.outcomes) == 1
    assert count == 12 * (len(GOOD) + 5)


@pytest.mark.parametrize("kind", ["md", "csv", "json", "jsonl", "eml", "xml", "html", "rtf", "txt"])
@settings(max_examples=40)
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_under_any_name_are_reported(kind: str, data: bytes) -> None:
    lead = GOOD.get(kind, b"")
    for content in (data, lead + data):
        for outcome in outcomes_of(content, f"x.{kind}"):
            assert (outcome.document is not None) == (outcome.status == "indexed")
            (outcome.reason + (outcome.document.text if outcome.document else "")).encode("utf-8")


def test_a_docx_with_any_part_missing_is_one_outcome() -> None:
    members = members_of(make_docx())
    for name in members:
        (outcome,) = outcomes_of(make_zip({key: data for key, data in members.items() if key != name}), "x.docx")
        assert outcome.document is not None or outcome.reason
