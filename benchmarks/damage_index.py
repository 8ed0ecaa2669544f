"""Every damage to an index is noticed when it is opened.

    python benchmarks/damage_index.py --damages 10000

Damages the files of a small index (the manifest among them) one at a time: a flipped bit, a zeroed page of 4 KiB, a
file cut short, one that holds what another one should, one that is gone. After each, opening must raise one
ArtifactError of one line; then the file is put back. What changes no byte (a page of zeros, zeroed) is no damage.
Prints counts as JSON:

    {"damages": 10000, "detected": 10000, "kinds": {"bit": 2011, ...}, "files": 27, "undetected": []}
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from raft.errors import ArtifactError

_PAGE = 4096


def damaged(kind: str, data: bytes, others: list[bytes], draw: random.Random) -> bytes | None:
    """What the file holds after the damage; None for no file."""
    if kind == "gone":
        return None
    if kind == "swap":
        return draw.choice(others)
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    if kind == "page":
        at = draw.randrange(0, len(data), _PAGE)
        return data[:at] + bytes(len(data[at : at + _PAGE])) + data[at + _PAGE :]
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def damage_index(out: Path, damages: int, seed: int = 0) -> dict[str, object]:
    """Damage the index at ``out`` so many times. It is whole again afterwards."""
    from raft.retrieval.index import open_index

    draw, kinds, undetected = random.Random(seed), Counter[str](), []
    whole = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    while kinds.total() < damages:
        kind, path = draw.choice(("bit", "page", "cut", "swap", "gone")), draw.choice(list(whole))
        data = damaged(kind, whole[path], list(whole.values()), draw)
        if data == whole[path]:
            continue
        kinds[kind] += 1
        path.unlink() if data is None else path.write_bytes(data)
        try:
            open_index(out)
            undetected.append(f"{kind} of {path.name}: opened")
        except ArtifactError as error:
            if "\n" in str(error):
                undetected.append(f"{kind} of {path.name}: more than a line")
        except Exception as error:  # noqa: BLE001 - any other is what this looks for
            undetected.append(f"{kind} of {path.name}: {error!r}")
        path.write_bytes(whole[path])
    open_index(out)
    return {
        "damages": damages, "detected": damages - len(undetected), "kinds": dict(sorted(kinds.items())),
        "files": len(whole), "undetected": undetected[:20],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from raft.config import EncoderRecipe
    from raft.indexing.build import build_index

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        source, out = Path(folder) / "source", Path(folder) / "index"
        source.mkdir()
        for number in range(12):
            text = f"# Clause {number}\n\nThe tenant pays {number} marks; notice is {number * 10} days."
            (source / f"clause-{number}.md").write_text(text, encoding="utf-8")
        build_index(source, out, encoder=EncoderRecipe(backend="torch"))
        began = time.monotonic()
        found = damage_index(out, given.damages, given.seed)
    print(json.dumps(found | {"seconds": round(time.monotonic() - began)}))
    sys.exit(bool(found["undetected"]))


if __name__ == "__main__":
    main()
