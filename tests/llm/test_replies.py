from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from raft.errors import InputError
from raft.llm import replies
from raft.llm.chat import ChatReply
from raft.llm.replies import Replies

ROOT = Path(__file__).resolve().parents[2]


def test_replies_come_back_as_they_went_in_and_outlive_the_process(tmp_path):
    store = Replies(tmp_path / "replies.sqlite")
    reply = ChatReply("k1", "über \u2028 “12 mg”\n", 310, 41, truncated=True)
    store.put(reply)
    store.put(ChatReply("k2", ""))
    store.close()
    again = Replies(tmp_path / "replies.sqlite")
    assert (again.get("k1"), again.get("k2"), again.get("k3")) == (reply, ChatReply("k2", ""), None)
    assert len(again) == 2


def test_two_runs_may_share_a_file(tmp_path):
    one, other = Replies(tmp_path / "cache.sqlite"), Replies(tmp_path / "cache.sqlite")
    one.put(ChatReply("a", "1"))
    other.put(ChatReply("b", "2"))
    assert one.get("b").text == "2"
    assert other.get("a").text == "1"


def test_a_file_that_holds_something_else_is_named(tmp_path):
    path = tmp_path / "replies.sqlite"
    path.write_text("something else altogether, longer than a header of SQLite: " + 200 * "x")
    with pytest.raises(InputError, match=r"replies\.sqlite cannot be opened"):
        Replies(path)


def test_a_file_that_another_program_holds_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(replies, "_BUSY_SECONDS", 0.1)
    path = tmp_path / "replies.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE something (value TEXT)")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=r"cannot be opened \(database is locked\). Keep it"):
        Replies(path)
    other.close()
    Replies(path).close()


def test_a_file_that_cannot_be_read_for_now_is_not_called_damaged(tmp_path, monkeypatch):
    class Failing:
        def execute(self, *_):
            raise error

    store = Replies(tmp_path / "replies.sqlite")
    monkeypatch.setattr(store, "_file", Failing())
    error = sqlite3.OperationalError("disk I/O error")
    with pytest.raises(InputError, match=r"cannot be read \(disk I/O error\). Keep it"):
        store.get("k1")
    error = sqlite3.DatabaseError("database disk image is malformed")
    with pytest.raises(InputError, match=r"are damaged \(database disk image is malformed\). Move the file away"):
        store.get("k1")


WRITE = """
import sys
from pathlib import Path
from raft.llm.chat import ChatReply
from raft.llm.replies import Replies
store = Replies(Path(sys.argv[1]))
for n in range(10**6):
    store.put(ChatReply(f"k{n}", "x" * 300))
    print(n, flush=True)
"""


def test_what_was_put_survives_kill_minus_nine(tmp_path):
    path = tmp_path / "replies.sqlite"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if int(line) == 200:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Replies(path)
    assert all(store.get(f"k{n}").text == "x" * 300 for n in range(201))
