"""raft keys, as typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.cli import Verbs
from raft.cli.keys import keys_add, keys_list, keys_revoke
from raft.errors import InputError, UsageError
from raft.serving.keys import read_keys


@pytest.fixture
def raft() -> Callable[..., Result]:
    """The command line, as far as keys go."""
    app = typer.Typer(cls=Verbs)
    for verb in (keys_add, keys_list, keys_revoke):
        app.command(verb.__name__.replace("_", " "))(verb)
    return lambda *words: CliRunner().invoke(app, ["keys", *map(str, words)])


def test_a_key_is_added_listed_and_revoked(tmp_path: Path, raft: Callable[..., Result]) -> None:
    path = tmp_path / "keys.jsonl"
    added = raft("add", "intranet", "--keys", path, "--label", "hr", "--label", "board",
                 "--expires", "2999-01-01", "--requests-per-minute", 60)  # fmt: skip
    assert added.exit_code == 0, added.stderr
    assert re.fullmatch(r"raft-intranet-[A-Za-z0-9_-]{43}\n", added.stdout)
    assert added.stdout.strip() not in added.stderr
    listed = raft("list", "--keys", path)
    assert re.fullmatch(
        r"intranet  labels board, hr  made \d{4}-\d\d-\d\d  until 2999-01-01  60 requests a minute\n", listed.stdout
    )
    revoked = raft("revoke", "intranet", "--keys", path)
    assert (revoked.exit_code, revoked.stdout) == (0, "")
    assert read_keys(path) == ()
    assert isinstance(raft("revoke", "intranet", "--keys", path).exception, UsageError)
    assert raft("add", "intranet").exit_code == 2  # --keys is not given


def test_the_list_shows_neither_secret_nor_hash(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "keys.jsonl"
    keys_add("a", path)
    secret = capsys.readouterr().out.strip()
    [key] = read_keys(path)
    for to_json in (False, True):
        keys_list(path, to_json)
        out = capsys.readouterr().out
        assert secret not in out
        assert key.hash not in out
    [row] = json.loads(out)
    assert (row["name"], row["labels"], row["expires"], row["requests_per_minute"]) == ("a", [], None, None)


def test_the_list_says_what_has_expired(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "keys.jsonl"
    keys_add("old", path, expires="2999-01-01")
    path.write_text(path.read_text().replace("2999", "2020"))
    capsys.readouterr()
    keys_list(path)
    assert "EXPIRED 2020-01-01" in capsys.readouterr().out


def test_mistakes_name_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    with pytest.raises(InputError, match="raft keys add"):
        keys_list(path)
    with pytest.raises(UsageError, match="like 2027-01-01"):
        keys_add("a", path, expires="soon")
    assert not path.exists()
    keys_add("a", path)
    with pytest.raises(UsageError, match="has a key called a"):
        keys_add("a", path)
    with pytest.raises(UsageError, match="no key called b"):
        keys_revoke("b", path)


@pytest.mark.parametrize("verb", [keys_add, keys_list, keys_revoke])
def test_every_option_is_explained(verb) -> None:
    app = typer.Typer()
    app.command()(verb)
    parameters = typer.main.get_command(app).params
    assert parameters
    assert [parameter.name for parameter in parameters if not parameter.help] == []
