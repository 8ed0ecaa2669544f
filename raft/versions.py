"""Artefacts that are updated in place: the next version is written beside the old one, one rename switches to it.

    with new_version(Path("indexes/legal"), "index", recipe, keep=("embeddings",)) as draft:
        write_rows(draft.folder / "chunks.jsonl", rows)         # draft.folder is indexes/legal.partial/v8

``kill -9`` at any moment leaves the old version or the new one. What a stopped run leaves behind (work in
``NAME.partial``, a version that no manifest names) is never read, and removed by the next run.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from raft.artifacts import MANIFEST, RESUME, Draft, finish, is_of_output, read_manifest, remove, sync_folder, write_json
from raft.errors import ArtifactError, InputError
from raft.places import locked, partial_folder, place_of


class Unchanged(Exception):
    """Raised in the block of ``new_version``: the version that stands is right as it is, and stays."""


@contextlib.contextmanager
def new_version(out: Path, kind: str, recipe: Mapping[str, Any], keep: Collection[str] = ()) -> Iterator[Draft]:
    """Write the next version of the artefact ``out``, or its first. When the block ends without an exception the new
    version is the one that is read, and nothing of the old one is left on the disk; nor is anything of this or an
    earlier attempt when the block raises ``Unchanged``.

    ``keep`` names what stays in ``NAME.partial`` when the block fails, for the next run to use: ``draft.folder.parent``
    holds it. Raises UsageError when another process is at work on ``out``, or no folder can be put there; ArtifactError
    when ``out`` is something else, or unfinished work of another kind lies beside it; InputError when the disk is full
    or not writable.
    """
    out = place_of(out)
    began = time.monotonic()
    with locked(out) as partial, _said_plainly(out):
        draft = Draft(partial / _next_version(out, kind))
        _check_unfinished(partial, kind, keep)
        try:
            _prepare(draft.folder, kind, keep)
            yield draft
            finish(draft, kind, recipe, time.monotonic() - began, draft.folder.name)
            _switch(draft.folder, out)
        except Unchanged:
            _clear(partial)
        except BaseException:
            _clear(partial, keep)
            raise
        finally:
            remove_leftovers(out, kind, keep)


@contextlib.contextmanager
def _said_plainly(out: Path) -> Iterator[None]:
    """Raise what stops the writing of ``out`` as an InputError."""
    try:
        yield
    except OSError as error:
        if not is_of_output(error, out):
            raise
        remedy = "Free disk space, or name another --out"
        raise InputError(f"{out} cannot be written ({error.strerror or error})", remedy) from error


# --- the folders ---------------------------------------------------------------------------------------------------


def _next_version(out: Path, kind: str) -> str:
    """v1 where there is none; raises ArtifactError when ``out`` is no artefact of this kind."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return "v1"
    if not (out / MANIFEST).exists():
        raise ArtifactError(f"{out} is not an artefact of raft and is never replaced", "Name another --out")
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (ValueError, RecursionError):  # damaged; who may replace it is not asked here
        found = None
    if isinstance(found, dict) and found.get("kind", kind) != kind:
        raise ArtifactError(
            f"{out} is another artefact ({found['kind']!r}) and is never replaced", "Name another --out"
        )
    numbers = [int(path.name[1:]) for path in out.iterdir() if _VERSION.fullmatch(path.name)]
    return f"v{max(numbers, default=0) + 1}"


_VERSION = re.compile(r"v[0-9]{1,18}")
_UNFINISHED = re.compile(rf"v\d+|({re.escape(MANIFEST)}|{re.escape(RESUME)})(\.tmp)?")


def _check_unfinished(partial: Path, kind: str, keep: Collection[str]) -> None:
    """Raise ArtifactError when what lies in ``partial`` is not what a stopped run of this kind leaves there."""
    marker = partial / RESUME
    if not marker.exists():
        if all(_UNFINISHED.fullmatch(path.name) or path.name in keep for path in partial.iterdir()):
            return
        raise ArtifactError(f"{partial} is not unfinished work of raft", "Move it away")
    if f'"kind": "{kind}"' not in marker.read_text(encoding="utf-8", errors="replace"):
        raise ArtifactError(f"unfinished work of another kind lies in {partial}", "Delete that folder")


def _prepare(folder: Path, kind: str, keep: Collection[str]) -> None:
    _clear(folder.parent, keep)
    write_json(folder.parent / RESUME, {"kind": kind, "resumable": True})
    folder.mkdir()


def _clear(partial: Path, keep: Collection[str] = ()) -> None:
    """Remove unfinished work but for what is kept; the marker that it is raft's goes last."""
    paths = sorted(partial.iterdir(), key=lambda path: path.name == RESUME) if partial.exists() else []
    kept = {path.name for path in paths if path.name in keep}
    for path in paths:
        if path.name not in kept and not (kept and path.name == RESUME):
            remove(path)


def _switch(version: Path, out: Path) -> None:
    partial = version.parent
    if not (out / MANIFEST).exists():
        with contextlib.suppress(OSError):
            out.rmdir()
        partial.rename(out)
        sync_folder(out.parent)
        return
    _note_first_format(out)
    version.rename(out / version.name)
    sync_folder(out)
    (partial / MANIFEST).replace(out / MANIFEST)  # from here on the new version is read
    sync_folder(out)
    _clear(partial)


def leftovers(out: Path, kind: str, keep: Collection[str] = ()) -> list[Path]:
    """What stopped runs left in ``out`` and beside it; it belongs to no version that is read."""
    beside = partial_folder(out)
    return _unread(out, kind, keep) + ([beside] if _is_unfinished(beside, kind, keep) else [])


def strangers(out: Path, kind: str, keep: Collection[str] = ()) -> list[Path]:
    """What lies in ``out`` and beside it and was not put there by raft, which therefore never removes it."""
    manifest, beside = read_manifest(out, kind), partial_folder(out)
    version = out / manifest.version
    known = {out / MANIFEST, version, *_unread(out, kind, keep)}
    above = {parent for path in known for parent in path.parents}
    found = [path for path in out.rglob("*") if known.isdisjoint((path, *path.parents)) and path not in above]
    wanted = {version / name for name in manifest.files}
    found += [path for path in version.rglob("*") if path not in wanted and not path.is_dir()]
    folders = {path for path in found if path.is_dir()}
    top = [path for path in found if folders.isdisjoint(path.parents)]
    return sorted(top) + ([beside] if beside.exists() and not _is_unfinished(beside, kind, keep) else [])


def remove_leftovers(out: Path, kind: str, keep: Collection[str] = ()) -> None:
    """Remove from ``out`` what raft itself put there and no longer reads; nothing where that cannot be told."""
    with contextlib.suppress(ArtifactError):
        for path in _unread(out, kind, keep):
            remove(path)
            for folder in path.parents:  # those of the first format, when they are empty
                if folder == out:
                    break
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _unread(out: Path, kind: str, keep: Collection[str]) -> list[Path]:
    """Raft's own in ``out`` but for the manifest and the version that it names. Last comes the marker, which says that
    what is kept, or the files of the first format, are raft's too."""
    manifest = read_manifest(out, kind)
    version, marker = out / manifest.version, out / RESUME
    if not manifest.version or not version.is_dir():
        raise ArtifactError(f"{out} has no versions", "Make it again with --overwrite")
    own = [path for path in out.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    names = [f"{MANIFEST}.tmp", f"{RESUME}.tmp", *(_marked(marker, keep) if marker.exists() else ()), RESUME]
    there = [out / name for name in names if (out / name).exists() or (out / name).is_symlink()]
    return [*sorted(path for path in own if path != version), *there]


def _is_unfinished(partial: Path, kind: str, keep: Collection[str]) -> bool:
    try:
        _check_unfinished(partial, kind, keep)
    except (ArtifactError, OSError):
        return False
    return True


# An artefact of the first format has its files beside its manifest. Only that manifest knows which are raft's and which
# the user's, so the list is kept in the marker until they are removed: the switch, which replaces the manifest, comes
# before.


def _note_first_format(out: Path) -> None:
    try:
        row = json.loads((out / MANIFEST).read_bytes())
        files = [name for name in row["files"] if _is_inside(name)] if row["format"] == 1 else []
    except (ValueError, RecursionError, KeyError, TypeError):  # damaged: what lies there stays
        return
    if files:
        write_json(out / RESUME, {"replaced": sorted(files)})


def _marked(marker: Path, keep: Collection[str]) -> list[str]:
    try:
        replaced = json.loads(marker.read_bytes()).get("replaced")
    except (ValueError, RecursionError, AttributeError):
        return []
    return sorted(keep) if replaced is None else [name for name in replaced if _is_inside(name)]


def _is_inside(name: object) -> bool:
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    return not path.is_absolute() and path.parts != () and ".." not in path.parts and path.parts != (MANIFEST,)
