"""The file of feedback, and the answers that may be rated."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st

from raft.errors import InputError
from raft.prompts import parse_answer
from raft.records import Chunk, Hit
from raft.serving.engine import Asked, Served, Turn
from raft.serving.feedback import FeedbackStore, GivenAnswer, NotKept, Opinion, Shown, read_feedback, text_hash
from raft.serving.keys import Caller
from raft.serving.recent import Recent
from raft.serving.service import Exchange, Timing

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (Shown("dose.md#0", "dose.md", text_hash("Adults start with 12 mg.")),)


def answer(name: str = "chatcmpl-1", **changes: object) -> GivenAnswer:
    values: dict = {
        "id": name, "caller": "ward-3", "model": "raft", "index": "f1", "question": "And in children?",
        "asked": "What is the first dose? And in children?", "earlier": (("What is the first dose?", "12 mg"),),
        "shown": SHOWN, "text": "<ANSWER>: 5 mg", "labels": ("icu",),
    }  # fmt: skip
    return GivenAnswer(**values | changes)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    name = store.write(answer(), Opinion("down", "children are not treated", "see page 3"))
    [row] = read_feedback(tmp_path / "f.sqlite")  # while the store is open
    assert (row.id, row.given, row.opinion) == (
        name,
        answer(),
        Opinion("down", "children are not treated", "see page 3"),
    )
    assert row.at.startswith("20")
    store.close()


def test_rating_again_replaces_and_keeps_the_id(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    first = store.write(answer(), Opinion("down", "6 mg", "no"))
    assert store.write(answer("other"), Opinion("up")) != first
    assert store.write(answer(), Opinion("up")) == first
    assert {row.given.id: row.opinion for row in read_feedback(tmp_path / "f.sqlite")} == {
        "other": Opinion("up"),
        "chatcmpl-1": Opinion("up"),
    }
    store.close()


def test_rows_of_one_moment_come_in_the_order_in_which_they_were_kept(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    names = [f"chatcmpl-{n}" for n in range(40)]
    for name in names:
        store.write(answer(name), Opinion("up"))
    store.close()
    with sqlite3.connect(tmp_path / "f.sqlite") as connection:
        connection.execute("UPDATE feedback SET at = '2026-01-01T00:00:00.000+00:00'")
    assert [row.given.id for row in read_feedback(tmp_path / "f.sqlite")] == names


@given_by(texts=st.lists(st.text(st.characters(codec=None), max_size=40), min_size=5, max_size=5))
@settings(max_examples=60)
def test_any_text_is_kept(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.sqlite"
    path.unlink(missing_ok=True)
    store = FeedbackStore(path)
    question, said, correction, comment, before = texts
    store.write(answer(question=question, text=said, earlier=((before, said),)), Opinion("down", correction, comment))
    store.close()
    [row] = read_feedback(path)

    def storable(text: str) -> str:
        return text.encode("utf-8", "replace").decode()

    kept = (row.given.question, row.given.text, row.opinion.correction, row.opinion.comment)
    assert kept == tuple(map(storable, (question, said, correction, comment)))


def test_the_file_and_its_journal_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    path.touch(0o644)
    store = FeedbackStore(path)
    store.write(answer(), Opinion("up"))
    files = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
    assert files["f.sqlite"] == files["f.sqlite-wal"] == 0o600
    assert set(files.values()) == {0o600}
    store.close()


def test_every_row_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from raft.serving.feedback import FeedbackStore, GivenAnswer, Opinion\n"
        "store, n = FeedbackStore(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    n, name = n + 1, f'{sys.argv[2]}-{n}'\n"
        "    given = GivenAnswer(name, 'ward', 'raft', 'f1', 'Why?', 'Why?', (), (), 'So.')\n"
        "    store.write(given, Opinion('up', 'x' * 3000)); print(name, flush=True)\n"
    )
    path, acknowledged = tmp_path / "f.sqlite", set()
    for run in "abc":
        process = subprocess.Popen([sys.executable, "-c", program, str(path), run], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        acknowledged |= {process.stdout.readline().decode().strip() for _ in range(20)}
        os.kill(process.pid, signal.SIGKILL)
        acknowledged |= set(process.stdout.read().decode().split("\n")[:-1])
        process.wait()
        assert acknowledged <= {row.given.id for row in read_feedback(path)}
    FeedbackStore(path).close()


def test_two_servers_write_one_file(tmp_path: Path) -> None:
    stores = [FeedbackStore(tmp_path / "f.sqlite") for _ in range(2)]

    def write(number: int) -> None:
        for n in range(20):
            stores[number].write(answer(f"{number}-{n}"), Opinion("up"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_feedback(tmp_path / "f.sqlite")) == 40
    for store in stores:
        store.close()


def test_the_event_loop_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    other = sqlite3.connect(tmp_path / "f.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # another process writes at this moment

    async def both() -> str:
        kept = asyncio.create_task(store.keep(answer(), Opinion("up")))
        await asyncio.sleep(0.05)
        assert not kept.done()
        other.execute("ROLLBACK")
        return await kept

    assert asyncio.run(both()) == read_feedback(tmp_path / "f.sqlite")[0].id
    other.close()
    store.close()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    store.write(answer("before"), Opinion("up"))
    store._connection.execute("PRAGMA max_page_count = 1")  # as on a disk that is full
    with pytest.raises(NotKept, match="feedback on big was not written"):
        store.write(answer("big", text="x" * 100_000), Opinion("up"))
    assert [row.given.id for row in read_feedback(tmp_path / "f.sqlite")] == ["before"]
    store.close()


def _database(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_what_is_no_file_of_feedback_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    foreign, text, newer, torn = (tmp_path / name for name in ("foreign", "text", "newer", "torn"))
    _database(foreign, "CREATE TABLE orders (id)")
    text.write_text("not a database at all, " * 50)
    FeedbackStore(newer).close()
    _database(newer, "PRAGMA user_version = 3")
    store = FeedbackStore(torn)
    for n in range(200):
        store.write(answer(str(n), text="x" * 300), Opinion("up"))
    store.close()
    data = bytearray(torn.read_bytes())
    data[4096:12288] = bytes(8192)
    torn.write_bytes(data)
    for path, why in ((foreign, "something else"), (text, "not a database"), (newer, "version 3"), (torn, "")):
        path.chmod(0o644)
        before = path.read_bytes()
        for open_it in (FeedbackStore, read_feedback):
            with pytest.raises(InputError, match=why) as caught:
                open_it(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
        assert path.stat().st_mode & 0o777 == 0o644


def test_rows_of_a_file_without_labels_are_kept_and_their_labels_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    store = FeedbackStore(path)
    store.write(answer(), Opinion("down", "5 mg"))
    store.close()
    _database(path, "ALTER TABLE feedback DROP COLUMN labels", "PRAGMA user_version = 1")
    [row] = read_feedback(path)
    assert (row.given, row.opinion) == (answer(labels=None), Opinion("down", "5 mg"))
    store = FeedbackStore(path)
    store.write(answer("new"), Opinion("up"))
    store.close()
    assert [row.given for row in read_feedback(path)] == [answer(labels=None), answer("new")]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        FeedbackStore(tmp_path / "none" / "f.sqlite")
    with pytest.raises(InputError, match="is not there"):
        read_feedback(tmp_path / "f.sqlite")
    assert not (tmp_path / "f.sqlite").exists()


def test_an_empty_file_that_a_stopped_start_left_is_used(tmp_path: Path) -> None:
    (tmp_path / "f.sqlite").touch()
    FeedbackStore(tmp_path / "f.sqlite").close()
    assert read_feedback(tmp_path / "f.sqlite") == []


# --- the answers that may be rated -----------------------------------------------------------------------------------

CHUNK = Chunk("dose.md#0", "dose.md", "Adults start with 12 mg.", 0, 24, "Dose")


def exchange(
    name: str, caller: str = "ward-3", text: str = "<ANSWER>: 12 mg", whole: bool = True, first: bool = False,
    held: frozenset[str] | None = None, needs: frozenset[str] = frozenset(),
) -> Exchange:  # fmt: skip
    hits = (Hit(CHUNK, 0.5, 1),)
    served = Served(parse_answer(text), hits, (), 0, None, question="What is the first dose? And in children?")
    asked = Asked("And in children?", () if first else (Turn("What is the first dose?", "12 mg"),))
    outcome = "answered" if whole else "cancelled"
    return Exchange(
        name,
        "chat",
        Caller(caller, held),
        "raft",
        asked,
        hits,
        served if whole else None,
        outcome,
        Timing(0, 0, 0),
        "f1",
        needs,
    )  # type: ignore[arg-type]


def test_an_answer_is_known_to_who_was_given_it() -> None:
    recent = Recent(labels=["icu"])
    recent(exchange("1", text="<ANSWER>: 5 mg"))
    recent(exchange("2", whole=False))
    assert recent.find("1", Caller("ward-3", frozenset({"icu"}))) == answer("1")
    assert recent.find("1", Caller("ward-4")) is None
    assert recent.find("2", Caller("ward-3")) is None
    assert recent.find("3", Caller("ward-3")) is None


ICU, HR = frozenset({"icu"}), frozenset({"hr"})


@pytest.mark.parametrize(
    ("of_server", "held", "needs", "of_first", "of_follow_up"),
    [
        ({"icu", "hr"}, None, frozenset(), (), ("hr", "icu")),
        ({"icu", "hr"}, ICU, frozenset(), (), ("icu",)),
        ({"icu", "hr"}, ICU, HR, ("hr",), ("hr", "icu")),
        (None, None, HR, ("hr",), None),
        (None, ICU, HR, ("hr",), ("hr", "icu")),
    ],
)
def test_an_answer_may_repeat_what_its_model_learned_and_what_was_said_before(
    of_server: set[str] | None,
    held: frozenset[str] | None,
    needs: frozenset[str],
    of_first: tuple[str, ...] | None,
    of_follow_up: tuple[str, ...] | None,
) -> None:
    recent = Recent(labels=of_server)
    recent(exchange("1", first=True, held=held, needs=needs))
    recent(exchange("2", held=held, needs=needs))
    given = [recent.find(name, Caller("ward-3")) for name in "12"]
    assert [each and each.labels for each in given] == [of_first, of_follow_up]


def test_the_oldest_answers_are_forgotten() -> None:
    recent = Recent(answers=3)
    for n in range(5):
        recent(exchange(str(n)))
    assert [n for n in range(5) if recent.find(str(n), Caller("ward-3"))] == [2, 3, 4]


def test_long_answers_take_the_room_of_many() -> None:
    recent = Recent(answers=1000, size=100_000)
    for n in range(50):
        recent(exchange(str(n), text=f"<ANSWER>: {'x' * 5000}"))
    known = [n for n in range(50) if recent.find(str(n), Caller("ward-3"))]
    assert known == [46, 47, 48, 49]
    held = json.dumps([recent.find(str(n), Caller("ward-3")).text for n in known])  # type: ignore[union-attr]
    assert len(held) < 100_000
    recent(exchange("huge", text="x" * 100_000))
    assert recent.find("huge", Caller("ward-3")) is None
    recent(exchange("next"))
    assert recent.find("next", Caller("ward-3"))
