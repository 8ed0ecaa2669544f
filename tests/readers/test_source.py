"""A folder is read file by file, in order; links, odd names, known and unreadable files are accounted for."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from raft.config import ReadingRecipe
from raft.errors import InputError
from raft.readers.source import SourceFile, _batches, _Entry, _printed_name, count_files, read_source
from tests.readers.files import found_in, make_docx, make_pdf
from tests.readers.test_pdf import locked_pdf


def test_files_come_in_order_with_their_digests(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Dose\n\nGive 4 mg.", encoding="utf-8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.csv").write_text("text\nOne\nTwo\n", encoding="utf-8")
    (tmp_path / "a.b.txt").write_text("Between.", encoding="utf-8")
    (tmp_path / "film.mp4").write_bytes(b"x")
    (tmp_path / ".hidden.txt").write_text("hidden", encoding="utf-8")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden", encoding="utf-8")
    files = list(read_source(tmp_path))
    assert [file.name for file in files] == ["a.b.txt", "a/c.csv", "b.md", "film.mp4"]
    assert count_files(tmp_path) == 4
    for file in files[:3]:
        assert file.digest == hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest()
    assert files[3].digest == ""
    assert [outcome.source for outcome in files[1].outcomes or ()] == ["a/c.csv#2", "a/c.csv#3"]


def test_one_file_is_named_by_itself(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Dose\n\nGive 4 mg.", encoding="utf-8")
    (file,) = read_source(tmp_path / "b.md")
    assert file.name == "b.md"
    assert count_files(tmp_path / "b.md") == 1


def test_known_files_are_not_parsed(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    digests = {file.name: file.digest for file in read_source(tmp_path)}
    (tmp_path / "b.txt").write_text("changed", encoding="utf-8")
    files = list(read_source(tmp_path, known=digests | {"c.txt": "", "gone.txt": "x"}))
    assert files[0] == SourceFile("a.txt", digests["a.txt"], None)
    assert [file.outcomes is None for file in files] == [True, False, False]


def test_names_that_are_no_utf8_are_written_out(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name, data in ((b"r\xe8gle.txt", b"A rule."), (b"r\xe9gle.txt", b"Another."), (b"c\xe9.csv", b"text\nRow.\n"),
                       (b"bad\xe9.docx", b"PK"), (b"x.\xe9", b"odd")):  # fmt: skip
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(data)
    found = found_in(tmp_path).values()
    documents = {o.document.id: o.document for o in found if o.document is not None}
    assert {key: document.text for key, document in documents.items()} == {
        r"r\xe8gle.txt": "A rule.", r"r\xe9gle.txt": "Another.", r"c\xe9.csv#2": "Row.",
    }  # fmt: skip
    assert {o.source: o.status for o in found if o.document is None} == {
        r"bad\xe9.docx": "refused", r"x.\xe9": "skipped",
    }  # fmt: skip
    for outcome in found:
        (outcome.source + outcome.reason).encode("utf-8")


def test_printed_names_stay_distinct() -> None:
    names = [
        b"r\xe8.txt",
        b"r\\xe8.txt",
        b"r\\\xe8.txt",
        b"r\\\\xe8.txt",
        b"r\\\\\xe8.txt",
        b"r\\x41\xe8",
        "rè.txt".encode(),
    ]
    printed = [_printed_name(os.fsdecode(name)) for name in names]
    assert len(set(printed)) == len(names)
    assert printed[:2] == [r"r\xe8.txt", r"r\\xe8.txt"]
    assert _printed_name(r"a\b.txt") == r"a\b.txt"


def test_each_bad_file_is_one_refusal_and_the_rest_goes_on(tmp_path: Path) -> None:
    files = {
        "scan.pdf": make_pdf([[], []]), "good.pdf": make_pdf([["Fine."]]), "locked.pdf": locked_pdf("key"),
        "cut.pdf": make_pdf([["Fine."]])[:300], "fake.docx": b"%PDF-1.4", "empty.txt": b" \n ", "zeros.md": bytes(100),
        "binary.txt": random.Random(0).randbytes(4000), "video.mp4": b"x", "named.pdf": make_docx(),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.txt")
    found = found_in(tmp_path)
    expected = dict.fromkeys(sorted({*files, "pipe.txt"}), "refused")
    expected |= {"good.pdf": "indexed", "named.pdf": "indexed", "video.mp4": "skipped"}
    assert {name: outcome.status for name, outcome in found.items()} == expected
    assert "password" in found["locked.pdf"].reason
    assert found["pipe.txt"].reason == "is not a regular file"
    assert all(o.reason for o in found.values() if o.status != "indexed")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("inside", encoding="utf-8")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "in.txt").symlink_to(folder / "a.txt")
    (folder / ".hidden.txt").write_text("hidden", encoding="utf-8")
    (folder / "hid.txt").symlink_to(".hidden.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    expected = {
        "a.txt": "indexed", "gone.txt": "refused", "hid.txt": "skipped", "in.txt": "skipped", "loop.txt": "refused",
        "out.txt": "skipped", "up": "skipped",
    }  # fmt: skip
    found = found_in(folder)
    assert {name: outcome.status for name, outcome in found.items()} == expected
    assert found["in.txt"].reason == "a link to a.txt, which is read under its own name"
    assert found["hid.txt"].reason == "a link to a hidden file is not followed"
    (tmp_path / "link").symlink_to(folder)
    assert {name: outcome.status for name, outcome in found_in(tmp_path / "link").items()} == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "a.txt").chmod(0)
    assert {name: outcome.status for name, outcome in found_in(tmp_path).items()} == {
        "a.txt": "refused", "shut": "skipped",
    }  # fmt: skip


def test_sizes_are_limited(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("x" * (1 << 20) + "x", encoding="utf-8")
    (tmp_path / "fits.txt").write_text("x" * (1 << 20), encoding="utf-8")
    big, fits = read_source(tmp_path, ReadingRecipe(max_file_mb=1))
    assert (big.outcomes or ())[0].reason == "has 1048577 bytes; at most 1048576 are read"
    assert (fits.outcomes or ())[0].document is not None
    assert big.digest == ""


def test_passwords_open_encrypted_files(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(locked_pdf("a key"))
    (tmp_path / "passwords").write_text("one\na key\n", encoding="utf-8")
    (file,) = read_source(tmp_path / "x.pdf", ReadingRecipe(passwords=tmp_path / "passwords"))
    assert (file.outcomes or ())[0].document is not None
    with pytest.raises(InputError, match=r"passwords in .* cannot be read"):
        list(read_source(tmp_path, ReadingRecipe(passwords=tmp_path / "nowhere")))


def test_a_missing_source_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no documents at"):
        list(read_source(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no documents at"):
        count_files(tmp_path / "nowhere")


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    assert list(read_source(tmp_path)) == []


def test_thousands_of_small_files_are_read_in_order(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04}.txt").write_text(f"Note {number}.", encoding="utf-8")
    files = list(read_source(tmp_path))
    assert [file.name for file in files] == [f"{number:04}.txt" for number in range(2000)]
    assert all(file.outcomes and file.outcomes[0].status == "indexed" for file in files)


def test_batches_are_small_enough_for_every_worker_and_in_order() -> None:
    entries = [_Entry(str(n), str(n), 3 << 20 if n == 5 else 10) for n in range(100)]
    batches = _batches(entries, 2, {"7": "digest"})
    assert [task.name for batch in batches for task in batch.tasks] == [str(n) for n in range(100)]
    assert all(len(batch.tasks) <= 13 for batch in batches)
    assert next(batch for batch in batches if batch.size > 1 << 20).tasks[0].name == "5"
    assert [task.known for batch in batches for task in batch.tasks][7:9] == ["digest", ""]
    assert _batches([], 2, {}) == []
