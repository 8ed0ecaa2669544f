"""raft keys: who may ask a server, until when, and which labels each holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import ToJson, printable
from raft.errors import InputError

if TYPE_CHECKING:
    from raft.serving.keys import Key

KeyPath = Annotated[Path, typer.Option(help="key file, the one that raft serve is given as keys")]
KeyName = Annotated[str, typer.Argument(help="name of the key: small letters, digits, _ and -")]


def keys_add(
    name: KeyName,
    keys: KeyPath,
    label: Annotated[
        list[str] | None, typer.Option(help="access label that the key holds (may be repeated); none: open documents")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="first day on which it is refused, like 2027-01-01 (UTC)")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="its own limit [the server's]")] = None,
) -> None:
    """Add a key and print its secret, which is shown this once."""
    from raft.serving.keys import add_key

    secret = add_key(keys, name, labels=label or (), expires=expires, requests_per_minute=requests_per_minute)
    typer.echo(secret)
    typer.echo(f"Keep it: {keys} has its hash alone. It is sent as Authorization: Bearer SECRET", err=True)


def keys_list(keys: KeyPath, to_json: ToJson = False) -> None:
    """List the keys of a file."""
    from raft.serving.keys import read_keys

    if not keys.exists():
        raise InputError(f"there is no key file {keys}", f"Make it: raft keys add NAME --keys {keys}")
    found = read_keys(keys)
    if to_json:
        rows = [key.model_dump(mode="json", exclude={"hash"}) for key in found]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for line in map(_line, found):
        typer.echo(printable(line))
    if not found:
        typer.echo(f"{keys} has no keys: raft keys add NAME --keys {keys}", err=True)


def keys_revoke(name: KeyName, keys: KeyPath) -> None:
    """Remove a key: running servers refuse it within a second or two."""
    from raft.serving.keys import revoke_key

    revoke_key(keys, name)
    typer.echo(f"{name} is revoked in {keys}", err=True)


def _line(key: Key) -> str:
    said = [key.name, f"labels {', '.join(key.labels) or 'none'}", f"made {key.created:%Y-%m-%d}"]
    if key.expires is not None:
        said.append(f"{'EXPIRED' if key.expired(datetime.now(UTC).date()) else 'until'} {key.expires}")
    if key.requests_per_minute is not None:
        said.append(f"{key.requests_per_minute} requests a minute")
    return "  ".join(said)
