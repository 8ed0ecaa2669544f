"""Artefacts: folders that are finished by their manifest.

A folder is written under a temporary name, its files are flushed and hashed, ``manifest.json`` is written
last, and one rename makes it visible. Only then is removed what a resumed run would need: journal, checkpoints
and ``resume.json``, so that whatever stops the last step, the work can be resumed or it stands there whole. A
folder without a manifest is unfinished: it can be resumed or deleted, never read. Opening verifies every file's
hash (BLAKE3, gigabytes a second) and the manifest's own: a FAISS file with zeroed pages, for one, often loads
without a word.

An artefact that is updated in place (an index) keeps its files in a folder of the version that its manifest names::

    indexes/legal/manifest.json      {"kind": "index", "version": "v7", "files": {"chunks.jsonl": "9f2c..."}, ...}
    indexes/legal/v7/chunks.jsonl

The next version is written beside it and one rename of the manifest makes the switch: whoever has the old version
open keeps it, and nobody ever sees a mixture.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raft.errors import ArtifactError, InputError
from raft.places import locked, partial_folder, place_of

MANIFEST = "manifest.json"
RESUME = "resume.json"
FORMAT = 2
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # said by nothing but writing
_CANNOT_WRITE = {*_DISK_IS_FULL, errno.EACCES, errno.EPERM, errno.EIO, errno.EBUSY, errno.EXDEV, errno.ENAMETOOLONG}
_PACKAGES = (
    "raft-tune", "torch", "transformers", "peft", "bitsandbytes", "sentence-transformers", "faiss-cpu", "bm25s",
    "langchain-text-splitters", "numpy", "trl", "optuna", "accelerate", "deepspeed", "liger-kernel",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manifest:
    """What made an artefact. ``files`` maps paths, relative to the version's folder, to their BLAKE3; ``version`` is ""
    for artefacts that are never updated; ``facts`` holds kind-specific figures."""

    kind: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    facts: Mapping[str, Any]
    packages: Mapping[str, str]
    machine: str
    seconds: float
    created: str
    version: str = ""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """Hash of the artefact's files: equal fingerprints mean equal content."""
        return digest(self.files)


@dataclass
class Draft:
    """An artefact being written. Fill ``folder``, ``inputs`` and ``facts``; leaving the block finishes it.

    ``scratch`` lists the files and folders in ``folder`` that only a resumed run needs: they are no part of the
    artefact, and removed once it is published, never before.
    """

    folder: Path
    inputs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    scratch: list[Path] = field(default_factory=list)


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """BLAKE3 of a file's bytes, all cores at work. Raises InputError when it cannot be read."""
    from blake3 import blake3

    try:
        return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def hash_path(path: Path) -> str:
    """BLAKE3 of a file, or a hash over the names and contents of a folder's files. Raises InputError."""
    if not path.is_dir():
        return hash_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest({file.relative_to(path).as_posix(): hash_file(file) for file in files})


def home() -> Path:
    """Where runs (datasets, adapters, reports, converted models) lie: ``RAFT_HOME``, or ``runs`` here."""
    return Path(os.environ.get("RAFT_HOME", "runs"))


def check_free(out: Path, overwrite: bool = False) -> None:
    """Raise ArtifactError when ``out`` is taken and may not be replaced, UsageError when no folder can be put there.
    Call before any long work."""
    place_of(out)
    if out.exists() and not overwrite:
        raise ArtifactError(f"{out} exists already", "Name another --out, or replace it with --overwrite")
    if out.exists() and not (out / MANIFEST).exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ArtifactError(f"{out} is not an artefact of raft and is never replaced", "Name another --out")


def is_of_output(error: OSError, out: Path) -> bool:
    """Whether an error says that ``out`` cannot be written; it may be of what is read, or of a library."""
    if error.errno in _DISK_IS_FULL:
        return True
    if error.filename is None:
        return error.errno is None and " written" in str(error)  # numpy's "3 requested and 0 written" says no more
    named = (name for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    paths = [Path(os.path.realpath(os.fsdecode(name))) for name in named]
    ours = {Path(os.path.realpath(folder)) for folder in (out, partial_folder(out))}
    return error.errno in _CANNOT_WRITE and any(not ours.isdisjoint((path, *path.parents)) for path in paths)


# --- writing -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(
    out: Path,
    kind: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    overwrite: bool = False,
    resume: bool | None = None,
    may_change: Collection[str] = (),
    worth_keeping: Collection[str] = (),
) -> Iterator[Draft]:
    """Write the artefact ``out``. The block fills ``draft.folder``; when it ends without an exception the folder
    gets its manifest and its name.

    ``resume`` says what becomes of unfinished work of ``out``: None, this kind of work always starts anew, and
    is removed when it fails; False, it may be resumed, so it stays when it fails and is never wiped silently;
    True, go on with it, provided that its recipe and inputs are the same. Work that may be resumed is not wiped
    by work that may not. ``may_change`` names the parts of the recipe that what is kept does not depend on ("trials",
    "watch.samples"). ``worth_keeping`` are patterns of files and folders ("checkpoints/*"): failed work that has none
    of them, or only empty files, is removed all the same.

    Raises ArtifactError when ``out`` is taken, or when partial work of other settings or inputs lies there;
    UsageError when another process writes it; InputError when the disk is full or not writable.
    """
    check_free(out, overwrite)
    _check_kind(out, kind)
    place = place_of(out)
    began = time.monotonic()
    identity = {"kind": kind, "recipe": json.loads(json.dumps(recipe, default=str)), "inputs": dict(inputs)}
    with locked(place) as partial:
        check_free(out, overwrite)  # another process may have made it meanwhile
        draft = Draft(partial, dict(inputs))
        _prepare(draft.folder, identity, resume, may_change)
        try:
            yield draft
            finish(draft, kind, recipe, time.monotonic() - began)
            publish(draft.folder, place)
            _tidy(place, [path.relative_to(draft.folder) for path in draft.scratch])
        except BaseException as error:
            if resume is None or (worth_keeping and not _holds_any(draft.folder, worth_keeping)):
                shutil.rmtree(draft.folder, ignore_errors=True)
            if isinstance(error, OSError) and is_of_output(error, place):
                raise _cannot_write(out, error, resume) from error
            raise


def _holds_any(folder: Path, patterns: Collection[str]) -> bool:
    """Whether a folder, or a file that is not empty, goes by one of the patterns."""
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return any(path.is_dir() or path.stat().st_size for path in found)


def _cannot_write(out: Path, error: OSError, resume: bool | None) -> InputError:
    way_on = "or name another --out" if resume is None else "and go on with --resume"
    return InputError(f"{out} cannot be written ({error.strerror or error})", f"Free disk space {way_on}")


def _check_kind(out: Path, kind: str) -> None:
    """Raise ArtifactError when ``out`` is an artefact of another kind: a slip, whoever says --overwrite."""
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # not there, or damaged
    if isinstance(found, dict) and found.get("kind", kind) != kind:
        raise ArtifactError(
            f"{out} is another artefact ({found['kind']!r}) and is never replaced", "Name another --out"
        )


_UNMARKED = {MANIFEST, MANIFEST + ".tmp", RESUME + ".tmp"}  # what a stop between two steps may leave


def _prepare(folder: Path, identity: dict[str, Any], resume: bool | None, may_change: Collection[str]) -> None:
    marker = folder / RESUME
    if not marker.exists() and any(path.name not in _UNMARKED for path in folder.iterdir()):
        raise ArtifactError(f"{folder} is not unfinished work of raft", "Move it away, or name another --out")
    if marker.exists():
        was = _read_marker(marker, identity["kind"])
        resumable = was.pop("resumable", True)
        if resume:
            _same_work(_fixed(was, may_change), _fixed(identity, may_change), folder)
            for name in (MANIFEST, MANIFEST + ".tmp"):  # of a run that was stopped in its last step
                (folder / name).unlink(missing_ok=True)
            return
        if resumable:
            raise ArtifactError(f"unfinished work lies in {folder}", _WAYS_ON[resume])
    try:
        for path in folder.iterdir():  # the folder itself is locked
            remove(path)
        write_json(marker, identity | {"resumable": resume is not None})
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})", "Name another --out") from None


def _read_marker(marker: Path, kind: str) -> dict[str, Any]:
    try:
        was = json.loads(marker.read_text(encoding="utf-8"))
        found = was["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{marker} is damaged", f"Delete the folder {marker.parent}") from None
    if found != kind:
        what = f"unfinished work of another kind ({found!r}) lies in {marker.parent}"
        raise ArtifactError(what, "Name another --out, or delete that folder")
    return was  # type: ignore[no-any-return]


_WAYS_ON: Mapping[bool | None, str] = {
    False: "Go on with --resume, or delete that folder",
    None: "Go on with --resume and the recipe that began it, name another --out, or delete that folder",
}


def _fixed(identity: Mapping[str, Any], may_change: Collection[str]) -> dict[str, Any]:
    """What must be the same for work to be resumed. ``may_change`` names parts of the recipe, or parts of those:
    "watch.samples"."""
    fixed = json.loads(json.dumps(identity))
    for name in may_change:
        *path, last = name.split(".")
        table = fixed.get("recipe", {})
        for key in path:
            table = table.get(key) or {}
        table.pop(last, None)
    return fixed  # type: ignore[no-any-return]


def _same_work(was: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    differ = [f"{key}: was {old!r}, now {new!r}" for key, old, new in _differences(was, now)]
    if differ:
        raise ArtifactError(
            f"cannot resume {folder}: {'; '.join(differ)}", "Use the same settings, or delete that folder"
        )


def _differences(was: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*was, *(key for key in now if key not in was)]
        return [d for key in keys for d in _differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)]
    return [] if was == now else [(path, was, now)]


def finish(draft: Draft, kind: str, recipe: Mapping[str, Any], seconds: float, version: str = "") -> None:
    """Flush and hash the draft's files; its manifest, beside the version's folder where it has one, comes last."""
    files = {}
    left_out = {draft.folder / RESUME, *draft.scratch}
    for path in sorted(p for p in draft.folder.rglob("*") if p.is_file() and left_out.isdisjoint((p, *p.parents))):
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        files[path.relative_to(draft.folder).as_posix()] = hash_file(path)
    manifest = Manifest(
        kind=kind, recipe=recipe, inputs=draft.inputs, files=files, facts=draft.facts, packages=_package_versions(),
        machine=f"{platform.machine()} {platform.system()} python {platform.python_version()} {os.cpu_count()} cores",
        seconds=round(seconds, 3), created=datetime.now(UTC).isoformat(timespec="seconds"), version=version,
    )  # fmt: skip
    for folder in {draft.folder, *((draft.folder / name).parent for name in files)}:
        sync_folder(folder)
    _write_text(draft.folder.parent / MANIFEST if version else draft.folder / MANIFEST, _manifest_text(manifest))


def _manifest_text(manifest: Manifest) -> str:
    row = json.loads(json.dumps(asdict(manifest), default=str))
    return json.dumps(row | {"checksum": digest(row)}, ensure_ascii=False, indent=1)


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def publish(folder: Path, out: Path) -> None:
    """Give a finished folder its name; what bore it before goes only once that is done."""
    old = out.with_name(out.name + ".replaced")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    folder.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(folder: Path, scratch: Sequence[Path]) -> None:
    """Remove what only a resumed run needs. The artefact is published: what cannot be removed does no harm."""
    for path in (*(folder / name for name in scratch), folder / RESUME):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a finished artefact of this kind, its files not yet verified.

    Raises ArtifactError when the folder is missing, unfinished, of another kind or of a newer format.
    """
    made_by = f"Make one with: raft {_VERBS.get(kind, kind)}"
    if not folder.is_dir():
        near = " (unfinished work lies beside it: go on with --resume)" if partial_folder(folder).exists() else ""
        raise ArtifactError(f"no {kind} at {folder}{near}", made_by)
    path = folder / MANIFEST
    if not path.exists():
        raise ArtifactError(f"{folder} has no {MANIFEST}: it is not a finished {kind}", made_by)
    manifest = parse_manifest(folder)
    if manifest.kind != kind:
        raise ArtifactError(f"{folder} is a {manifest.kind}, not a {kind}", made_by)
    return manifest


_MAKE_AGAIN = "Restore it from a backup, or make it again with --overwrite"


def parse_manifest(folder: Path) -> Manifest:
    try:
        data = (folder / MANIFEST).read_bytes()
        row = json.loads(data)
        row.pop("checksum", None)
        if row.get("format", FORMAT) != FORMAT:
            made = "newer" if row["format"] > FORMAT else "older"
            how = "Upgrade raft-tune" if made == "newer" else "Make it again with --overwrite"
            raise ArtifactError(f"{folder} has format {row['format']} of {made} raft; this one reads {FORMAT}", how)
        manifest = Manifest(**row)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is damaged ({error})", _MAKE_AGAIN) from None
    if _manifest_text(manifest).encode() != data:
        raise ArtifactError(f"{folder / MANIFEST} is damaged: it has changed since it was made", _MAKE_AGAIN)
    return manifest


_VERBS = {
    "index": "index", "dataset": "generate", "adapter": "train", "encoder": "train", "reranker": "train",
    "report": "evaluate", "retrieval": "evaluate retrieval", "sweep": "evaluate sweep", "tuning": "tune",
    "export": "export", "reward_model": "train", "classifier": "train",
}  # fmt: skip


def open_artifact(folder: Path, kind: str) -> Manifest:
    """The manifest of a finished artefact whose every file was hashed and found unchanged.

    Raises ArtifactError as ``read_manifest`` does, and when a file is missing or its bytes have changed.
    """
    manifest = read_manifest(folder, kind)
    for name, expected in manifest.files.items():
        path = folder / manifest.version / name
        if not path.is_file():
            raise ArtifactError(f"{folder} is damaged: {name} is missing", _MAKE_AGAIN)
        if hash_file(path) != expected:
            raise ArtifactError(
                f"{folder} is damaged: {name} has changed since it was made",
                _MAKE_AGAIN,
            )
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write and flush to disk; a reader sees the old file or the new one, never half."""
    _write_text(path, json.dumps(value, ensure_ascii=False, indent=1, default=str))


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
