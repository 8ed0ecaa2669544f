"""Keys: made, kept as hashes, compared, and seen by a server that runs."""

from __future__ import annotations

import hmac
import json
import os
import re
import stat
import string
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raft.errors import ArtifactError, InputError, UsageError
from raft.places import locked
from raft.serving.keys import (
    Caller,
    Key,
    KeyFile,
    Known,
    _state_of,
    add_key,
    find_caller,
    hash_of,
    read_keys,
    revoke_key,
)

TODAY = date(2026, 3, 2)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)


def known(path: Path) -> list[Known]:
    return [key.known() for key in read_keys(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def test_a_key_is_made_found_and_revoked(path: Path) -> None:
    secret = add_key(path, "intranet", labels=["hr", "board", "hr"], expires="2999-01-01", requests_per_minute=60)
    other = add_key(path, "other")
    assert find_caller(known(path), secret.encode(), TODAY) == Caller("intranet", frozenset({"hr", "board"}), 60)
    assert find_caller(known(path), other.encode(), TODAY) == Caller("other", frozenset())
    revoke_key(path, "intranet")
    assert [key.name for key in read_keys(path)] == ["other"]
    assert find_caller(known(path), secret.encode(), TODAY) is None
    revoke_key(path, "other")
    assert read_keys(path) == ()


def test_the_secret_is_random_recognisable_and_kept_nowhere(path: Path) -> None:
    secrets = [add_key(path, f"key-{n}") for n in range(3)]
    assert len({*secrets}) == 3
    for n, secret in enumerate(secrets):
        assert re.fullmatch(rf"raft-key-{n}-[A-Za-z0-9_-]{{43}}", secret)  # 43 characters of 6 bits: 256 random bits
        assert secret.rsplit("-", 1)[1][:12] not in path.read_text()


def test_the_file_is_its_owners_alone(path: Path) -> None:
    add_key(path, "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o604)
    add_key(path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.jsonl"]


def test_a_link_to_the_file_stays_a_link(path: Path) -> None:
    path.parent.joinpath("real").mkdir()
    path.symlink_to(path.parent / "real" / "keys.jsonl")
    add_key(path, "a")
    assert path.is_symlink()
    assert [key.name for key in read_keys(path)] == ["a"]


@given(NAMES, st.lists(st.text(min_size=1), max_size=4), st.none() | st.integers(1, 10**6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_is_read(path: Path, name: str, labels: list[str], limit: int | None) -> None:
    path.unlink(missing_ok=True)
    secret = add_key(path, name, labels=labels, requests_per_minute=limit)
    assert find_caller(known(path), secret.encode(), TODAY) == Caller(name, frozenset(labels), limit)


@given(st.binary(max_size=80))
def test_nothing_but_a_secret_opens(given_secret: bytes) -> None:
    keys = [Known(hash_of(b"raft-a-x"), None, Caller("a")), Known(hash_of(b"raft-b-y"), None, Caller("b"))]
    assert find_caller(keys, given_secret, TODAY) is None
    assert find_caller([], given_secret, TODAY) is None


def test_an_empty_secret_opens_nothing_even_if_somebody_wrote_its_hash_into_the_file() -> None:
    assert find_caller([Known(hash_of(b""), None, Caller("a"))], b"", TODAY) is None


def test_a_hash_is_no_secret(path: Path) -> None:
    secret = add_key(path, "a")
    [key] = read_keys(path)
    assert find_caller(known(path), key.hash.encode(), TODAY) is None
    assert key.hash == hash_of(secret.encode())


def test_a_key_is_refused_from_the_day_on_which_it_expires(path: Path) -> None:
    day = datetime.now(UTC).date() + timedelta(days=3)
    secret = add_key(path, "a", expires=day.isoformat()).encode()
    assert find_caller(known(path), secret, day - timedelta(days=1)) == Caller("a", frozenset())
    assert find_caller(known(path), secret, day) is None


def test_every_key_is_compared_whatever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    keys = [
        Known(hash_of(b"first"), None, Caller("first")), Known(hash_of(b"old"), date(2020, 1, 1), Caller("old")),
        Known(hash_of(b"last"), None, Caller("last")),
    ]  # fmt: skip
    for secret in (b"first", b"last", b"old", b"unknown", b""):
        compared.clear()
        find_caller(keys, secret, TODAY)
        assert compared == [key.hash for key in keys]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "In Tranet"}, "name is 'In Tranet'"),
        ({"name": "a" * 65}, "name is "),
        ({"name": "../a"}, "name is '../a'"),
        ({"expires": "tomorrow"}, "expires is 'tomorrow'"),
        ({"expires": "2020-01-01"}, "not in the future"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"labels": [""]}, "labels is ''"),
        ({"name": "taken"}, "has a key called taken"),
    ],
)
def test_bad_keys_are_not_made(path: Path, wrong: dict, says: str) -> None:
    add_key(path, "taken")
    before = path.read_bytes()
    with pytest.raises(UsageError, match=re.escape(says)):
        add_key(path, **{"name": "new", **wrong})
    assert path.read_bytes() == before


def test_an_unknown_key_is_not_revoked(path: Path) -> None:
    add_key(path, "a")
    with pytest.raises(UsageError, match=r"has no key called b\. It has a"):
        revoke_key(path, "b")


GOOD = {
    "name": "a", "hash": "0" * 64, "labels": [], "created": "2026-03-02T10:15:00Z", "expires": None,
    "requests_per_minute": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        {"hash": "0" * 63}, {"hash": "secret"}, {"labels": "hr"}, {"labels": None}, {"expires": "soon"},
        {"expire": "2020-01-01"}, {"name": "B"}, {"requests_per_minute": -1},
    ],
)  # fmt: skip
def test_a_damaged_key_is_an_error_and_never_overwritten(path: Path, damage: dict) -> None:
    path.write_text(json.dumps({**GOOD, **damage}) + "\n")
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"key 1 is damaged") as caught:
        KeyFile(path)
    assert caught.value.remedy
    with pytest.raises(InputError, match="key 1 is damaged"):
        add_key(path, "new")
    assert path.read_bytes() == before


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_key_without_one_of_its_fields_is_damaged(path: Path, missing: str) -> None:
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != missing}) + "\n")
    with pytest.raises(ArtifactError, match=missing):
        read_keys(path)


def test_a_name_twice_is_damage(path: Path) -> None:
    path.write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(ArtifactError, match="two keys called a"):
        read_keys(path)


def test_a_missing_or_unreadable_file_is_an_error_at_the_start(path: Path) -> None:
    with pytest.raises(InputError, match="no key file") as caught:
        KeyFile(path)
    assert f"raft keys add NAME --keys {path}" in caught.value.remedy
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        KeyFile(path)


def test_one_writer_at_a_time(path: Path) -> None:
    add_key(path, "a")
    with locked(path), pytest.raises(UsageError, match="another raft is writing"):
        add_key(path, "b")
    add_key(path, "b")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give a file to others")
def test_a_file_of_another_user_stays_that_user_s(path: Path) -> None:
    add_key(path, "a")
    os.chown(path, 12345, 23456)
    revoke_key(path, "a")  # as with sudo, while the server is another user
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o640, 0o640), (0o666, 0o640), (0o400, 0o400)])
def test_a_group_that_may_read_goes_on_reading(path: Path, before: int, after: int) -> None:
    add_key(path, "a")
    path.chmod(before)
    add_key(path, "b")
    assert stat.S_IMODE(path.stat().st_mode) == after


def test_a_folder_that_cannot_be_written_is_said_with_the_option_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--keys"):
        add_key(tmp_path / "file" / "keys.jsonl", "a")


def test_a_reader_sees_whole_files_alone(path: Path) -> None:
    add_key(path, "key-0")
    stopped = threading.Event()

    def write() -> None:
        for n in range(1, 15):
            add_key(path, f"key-{n}")
        stopped.set()

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    while not stopped.is_set():
        counts.append(len(read_keys(path)))
    writer.join()
    assert counts == sorted(counts)
    assert len(read_keys(path)) == 15


# --- a server that runs


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_running_server_sees_changes_and_looks_once_a_second(path: Path) -> None:
    first = add_key(path, "first").encode()
    clock = Clock()
    file = KeyFile(path, clock)

    def knows(secret: bytes) -> bool:
        return find_caller(file.known(), secret, TODAY) is not None

    second = add_key(path, "second").encode()
    clock.now += 0.9
    assert (knows(first), knows(second)) == (True, False)
    clock.now += 0.2
    assert (knows(first), knows(second)) == (True, True)
    revoke_key(path, "first")
    clock.now += 1
    assert (knows(first), knows(second)) == (False, True)


def test_a_damaged_file_keeps_the_last_keys_and_is_told_of_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = add_key(path, "a").encode()
    good = path.read_bytes()
    clock = Clock()
    file = KeyFile(path, clock)
    for damage in (lambda: path.write_text("garbage\n"), lambda: path.write_bytes(good[:-20]), path.unlink):
        damage()
        caplog.clear()
        for _ in range(3):
            clock.now += 1
            assert find_caller(file.known(), secret, TODAY) == Caller("a", frozenset())
        [record] = caplog.records
        assert "stay in force" in record.getMessage()
        assert file.unreadable
    path.write_bytes(good)
    revoke_key(path, "a")
    clock.now += 1
    assert file.known() == ()
    assert not file.unreadable


def test_a_file_that_may_be_read_again_is_looked_at_again(path: Path) -> None:
    add_key(path, "a")
    before = _state_of(path)
    path.chmod(0o640)
    assert _state_of(path) != before


def test_names_stay_within_what_logs_and_models_can_hold() -> None:
    allowed = {*string.ascii_lowercase, *string.digits, "_", "-"}
    for char in map(chr, range(256)):
        row = {**GOOD, "name": f"a{char}"}
        if char in allowed:
            assert Key.model_validate(row).name == f"a{char}"
        else:
            with pytest.raises(ValueError):
                Key.model_validate(row)
