"""An updated index is the one that a fresh build would make, and only what changed was worked on."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raft
from raft import versions
from raft.artifacts import read_manifest
from raft.config import DenseRecipe, EncoderRecipe, RuleRecipe
from raft.errors import ArtifactError, InputError, UsageError
from raft.indexing import build as index_build
from raft.indexing.previous import KEYS
from raft.indexing.verify import verify_index
from raft.places import partial_folder
from raft.readers.source import SourceFile, read_source
from raft.retrieval.dense import DENSE, DenseIndex
from raft.retrieval.index import open_index
from raft.rows import read_rows
from tests.indexing.conftest import build, write_files

FILES = {
    "rent.md": "# Rent\n\nRent is due on the first day of each month.",
    "roof.md": "# Roof\n\nThe landlord keeps the roof in good repair.",
    "pets.md": "---\nlabels: [board]\ntags: [animals]\ndate: 2024-03-01\n---\n# Pets\n\nNo animals without consent.",
}


def content(out: Path) -> dict[str, bytes]:
    """Every file of the version that is read, but for the vectors."""
    folder = out / read_manifest(out, "index").version
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files[DENSE]
    return files


def vectors(out: Path) -> np.ndarray:
    dense = DenseIndex.load(out / read_manifest(out, "index").version)
    return dense.vectors(np.arange(len(dense)))


def keys(out: Path) -> set[bytes]:
    return {key.tobytes() for key in np.load(out / read_manifest(out, "index").version / KEYS)}


def hits(out: Path) -> list[list[tuple[str, float]]]:
    index = open_index(out, labels=("board",))
    found = [index.search(["when is rent due", "roof animals"], 5, mode) for mode in ("dense", "bm25", "fused")]
    return [[(hit.chunk.id, round(hit.score, 4)) for hit in ranked] for ranking in found for ranked in ranking]


def assert_equal_indexes(one: Path, other: Path) -> None:
    ours, theirs = content(one), content(other)
    assert [name for name in ours | theirs if ours.get(name) != theirs.get(name)] == []
    assert np.abs(vectors(one) - vectors(other)).max() < 1e-5
    facts = [dict(read_manifest(out, "index").facts) for out in (one, other)]
    assert facts[0] == facts[1]
    assert sorted(map(sorted, hits(one))) == sorted(map(sorted, hits(other)))


def taken_over(out: Path, before: dict[str, bytes], now: dict[str, bytes]) -> set[str]:
    """The files that need not be parsed: as they were, with documents, none of which lost its id to another."""
    folder, names = out / read_manifest(out, "index").version, set()
    outcomes = list(read_rows(folder / "outcomes.jsonl"))
    for name in before.keys() & now.keys():
        own = [row for row in outcomes if row["source"] == name or row["source"].startswith(name + "#")]
        lost = any("is taken by" in row["reason"] for row in own)
        reasons = [row["reason"] for row in own if row["status"] == "indexed"]
        if before[name] == now[name] and not lost and reasons and not any(reasons):
            names.add(name)
    return names


words = st.sampled_from(
    ["rent", "roof", "notice of ninety days", "the tenant pays", "animals", "ö\u2028ß", "# Heading"]
)
texts = st.lists(words, min_size=1, max_size=4).map("\n\n".join)
rows = st.fixed_dictionaries(
    {"id": st.sampled_from(["a", "b", "rent.md", 7, None]), "text": texts},
    optional={"labels": st.sampled_from([["board"], "board, icu", {"bad": 1}]), "date": st.sampled_from(["2024", 5]),
              "title": words, "source": st.just("elsewhere"), "tags": st.just(["x"])},
)  # fmt: skip
files = st.one_of(
    texts.map(lambda text: text.encode()),
    st.lists(rows, min_size=1, max_size=3).map(lambda found: "\n".join(map(json.dumps, found)).encode()),
    st.sampled_from([b"\x00\x01\x02binary", b"", b'{"id": "a", "text": "cut']),
)
names = st.sampled_from(["a.md", "deep/b.md", "c.jsonl", "d.jsonl", "rent.md", "e.pdf", "f.mp4"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, files), st.tuples(st.just("remove"), names, st.none()),
        st.tuples(st.just("rename"), names, names), st.tuples(st.just("again"), names, st.none()),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


def changed(now: dict[str, bytes], step: tuple[str, str, object]) -> dict[str, bytes]:
    what, name, how = step
    result = dict(now)
    if what == "write":
        result[name] = how  # type: ignore[assignment]
    elif what == "remove":
        result.pop(name, None)
    elif what == "rename" and name in result:
        result[str(how)] = result.pop(name)
    return result


@settings(max_examples=2)
@given(sequence=st.lists(steps, min_size=1, max_size=2))
def test_any_sequence_of_changes_equals_a_fresh_build(
    sequence: list[list[tuple[str, str, object]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("update")
    now: dict[str, bytes] = {"keep.md": b"# Keep\n\nThe court decides.", "rent.md": b"# Rent\n\nRent is due."}
    source, out = write_files(folder / "source", now), folder / "index"
    build(source, out)
    for number, changes in enumerate(sequence):
        before, known = now, keys(out)
        for step in changes:
            now = changed(now, step)
        write_files(source, now)
        expected = taken_over(out, before, now)
        summary = build(source, out)
        fresh = folder / f"fresh-{number}"
        build(source, fresh)
        assert_equal_indexes(out, fresh)
        assert summary.encoded == len(keys(fresh) - known)
        assert summary.parsed == len(now) - len(expected)
        assert not partial_folder(out).exists()
    assert verify_index(out).problems == ()
    again = build(source, out)
    assert (again.changed, again.encoded, again.version) == (False, 0, read_manifest(out, "index").version)
    assert (again.chunks, again.documents) == (len(open_index(out, labels=("board", "icu")).chunks), summary.documents)


def test_an_up_to_date_run_writes_nothing(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    first = build(source, out)
    stood = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    second = build(source, out)
    assert (first.changed, first.version, first.encoded, first.parsed) == (True, "v1", 3, 3)
    assert (second.changed, second.version, second.encoded, second.parsed) == (False, "v1", 0, 0)
    assert (second.documents, second.chunks) == (3, 3)
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == stood
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "source"]


def test_a_renamed_file_is_cut_but_not_encoded_again(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    (source / "rent.md").rename(source / "zins.md")
    summary = build(source, out)
    assert (summary.encoded, summary.parsed, summary.version) == (0, 1, "v2")
    assert [chunk.id for chunk in open_index(out).chunks] == ["roof.md#0", "zins.md#0"]


def test_an_id_passes_to_the_next_file_when_its_owner_goes(tmp_path: Path) -> None:
    row = {"id": "a", "text": "Rent is due."}
    files = {"1.jsonl": json.dumps(row), "2.jsonl": json.dumps(row | {"text": "Rent is not due."})}
    source, out = write_files(tmp_path / "source", files), tmp_path / "index"
    assert build(source, out).outcomes == {"indexed": 1, "refused": 1}
    write_files(source, {"2.jsonl": files["2.jsonl"]})
    build(source, out)
    assert open_index(out).document("a").text == "Rent is not due."
    write_files(source, {"0.jsonl": json.dumps(row | {"text": "New."}), "2.jsonl": files["2.jsonl"]})
    assert build(source, out).left_out[0].reason == "its id 'a' is taken by 0.jsonl#1"
    assert open_index(out).document("a").text == "New."


def test_a_row_refused_for_its_id_does_not_make_its_file_be_read_again(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "Rent."}, {"id": True, "text": "Roof."}]
    source = write_files(tmp_path / "source", {"r.jsonl": "\n".join(map(json.dumps, rows))})
    build(source, tmp_path / "index")
    assert build(source, tmp_path / "index").parsed == 0


def test_a_file_refused_for_another_reason_is_said_so(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES | {"x.md": b""}), tmp_path / "index"
    was = build(source, out).left_out[0].reason
    write_files(source, FILES | {"x.md": b"\x00\x01\x02\x03"})
    now = build(source, out)
    assert now.changed
    assert now.left_out[0].reason != was
    assert [row["reason"] for row in read_rows(out / "v2" / "outcomes.jsonl") if row["reason"]] == [
        now.left_out[0].reason
    ]


def test_rules_give_labels_and_tags_and_other_rules_need_a_word(tmp_path: Path) -> None:
    row = {"id": "pay", "text": "Pay is 900 marks.", "source": "elsewhere"}
    files = FILES | {"hr/pay.jsonl": json.dumps(row)}
    source, out = write_files(tmp_path / "source", files), tmp_path / "index"
    rules = (RuleRecipe(path="hr/**", labels=("hr",), tags=("money",)), RuleRecipe(path="pets.md", labels=("vet",)))
    assert build(source, out, rules=(*rules, RuleRecipe(path="HR/**", labels=("hr",)))).idle_rules == ("HR/**",)
    assert build(source, out, rules=rules, overwrite=True).idle_rules == ()
    assert build(source, out, rules=rules).idle_rules == ()  # nor where every file is known already
    index = open_index(out, labels=("hr", "board"))
    assert index.manifest.facts["labels"] == ["board", "hr", "vet"]
    assert index.document("pay").metadata["tags"] == ["money"]  # though its row names another source
    assert [document.id for document in index.documents] == ["pay", "rent.md", "roof.md"]
    assert [document.id for document in open_index(out).documents] == ["rent.md", "roof.md"]
    with pytest.raises(ArtifactError, match=r"other settings.*rules"):
        build(source, out)
    summary = build(source, out, overwrite=True)
    assert (summary.encoded, len(open_index(out).documents)) == (0, 3)
    assert verify_index(out).problems == ()


def test_labels_that_change_in_a_file_are_obeyed_at_once(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    write_files(source, FILES | {"rent.md": "---\nlabels: [board]\n---\n" + FILES["rent.md"]})
    assert build(source, out).encoded == 0
    assert [document.id for document in open_index(out).documents] == ["roof.md"]


def test_another_encoder_encodes_everything_again(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    other = EncoderRecipe(document_prompt="passage: ", backend="torch")
    with pytest.raises(ArtifactError, match=r"encoder.document_prompt: was None, now 'passage: '"):
        build(source, out, encoder=other)
    before = vectors(out)
    summary = build(source, out, encoder=other, overwrite=True)
    assert summary.encoded == 3
    assert np.abs(before - vectors(out)).max() > 0.01
    build(source, tmp_path / "fresh", encoder=other)
    assert_equal_indexes(out, tmp_path / "fresh")


def test_speed_may_change_and_overwrite_reads_everything_anew(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    assert not build(source, out, encoder=EncoderRecipe(batch_size=1, backend="torch")).changed
    summary = build(source, out, overwrite=True)
    assert (summary.changed, summary.parsed, summary.encoded, summary.version) == (True, 3, 0, "v2")


def test_an_index_of_another_raft_keeps_its_vectors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    with monkeypatch.context() as older:
        older.setattr(raft, "__version__", "0.0.1")
        build(source, out)
    summary = build(source, out)
    assert (summary.changed, summary.parsed, summary.encoded) == (True, 3, 0)
    build(source, tmp_path / "fresh")
    assert_equal_indexes(out, tmp_path / "fresh")


def test_chunks_that_are_too_long_stay_counted(tmp_path: Path) -> None:
    from raft.config import ChunkingRecipe

    rows = [{"id": "long", "text": "word " * 900}, {"id": "short", "text": "word"}]
    files = {"b.jsonl": "\n".join(map(json.dumps, rows))}
    source, out, own = write_files(tmp_path / "source", files), tmp_path / "index", ChunkingRecipe(as_is=True)
    assert build(source, out, chunking=own).cut == 1
    assert build(source, out, chunking=own).cut == 1
    write_files(source, files | {"a.md": "first"})
    assert build(source, out, chunking=own).cut == 1
    build(source, tmp_path / "fresh", chunking=own)
    assert_equal_indexes(out, tmp_path / "fresh")
    write_files(source, {"a.md": "first"})
    assert build(source, out, chunking=own).cut == 0


def test_the_same_source_by_another_path_and_a_source_that_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    monkeypatch.chdir(tmp_path)
    assert not build(Path("source"), out).changed
    source.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"source: was '.*/source', now '.*/moved'.*--overwrite"):
        build(Path("moved"), out)
    summary = build(Path("moved"), out, overwrite=True)
    assert (summary.encoded, summary.version) == (0, "v2")


def test_another_folder_that_is_typed_the_same_does_not_replace_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    for name in ("one", "two"):
        write_files(tmp_path / name / "docs", FILES)
    monkeypatch.chdir(tmp_path / "one")
    build(Path("docs"), out)
    assert read_manifest(out, "index").recipe["source"] == str(tmp_path / "one" / "docs")
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ArtifactError, match=r"source: was '.*/one/docs', now '.*/two/docs'.*--overwrite"):
        build(Path("docs"), out)


def test_a_file_that_was_read_in_part_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"

    def in_part(*given: object) -> Iterator[SourceFile]:
        for file in read_source(*given):  # type: ignore[arg-type]
            told = file.name == "rent.md" and file.outcomes is not None
            outcomes = tuple(replace(o, reason="pages without text: 2") for o in file.outcomes or ()) if told else None
            yield replace(file, outcomes=outcomes) if told else file

    with monkeypatch.context() as patched:
        patched.setattr(index_build, "read_source", in_part)
        assert build(source, out).changed
        again = build(source, out)
        assert (again.changed, again.parsed) == (False, 1)
    now = build(source, out)
    assert (now.changed, now.parsed, now.encoded) == (True, 1, 0)
    assert build(source, out).parsed == 0


def test_a_source_that_cannot_be_read_is_not_said_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_files(tmp_path / "source", FILES)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(index_build, "read_source", denied)
    with pytest.raises(PermissionError):
        build(source, tmp_path / "index")
    assert not partial_folder(tmp_path / "index").exists()


def test_nothing_left_in_the_source_keeps_the_index_and_says_what_to_do(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    write_files(source, {"x.md": b""})
    with pytest.raises(InputError, match=r"nothing to index.*or delete the index"):
        build(source, out)
    assert len(open_index(out).documents) == 2
    assert not partial_folder(out).exists()


def test_a_damaged_index_is_replaced_with_a_word_only(tmp_path: Path) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    for name in ("v1/chunks.jsonl", "manifest.json"):
        damaged = tmp_path / "damaged"
        shutil.copytree(out, damaged)
        (damaged / name).write_bytes((damaged / name).read_bytes()[:-7])
        with pytest.raises(ArtifactError, match="damaged"):
            build(source, damaged)
        with pytest.raises(ArtifactError, match="damaged"):  # it was left as it is
            open_index(damaged)
        summary = build(source, damaged, overwrite=True)
        assert (summary.version, summary.encoded, len(open_index(damaged).chunks)) == ("v2", 3, 2)
        assert verify_index(damaged).problems == ()
        shutil.rmtree(damaged)


@pytest.mark.parametrize("stopped", [False, True])
def test_an_index_of_the_first_format_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    (out / "bm25").mkdir(parents=True)
    (out / "bm25" / "old.npy").write_bytes(b"old")
    (out / "bm25" / "mine.txt").write_text("mine")
    (out / "chunks.jsonl").write_text("old")
    was = {"kind": "index", "format": 1, "files": {"bm25/old.npy": "1", "chunks.jsonl": "2", "../source/rent.md": "3"}}
    (out / "manifest.json").write_text(json.dumps(was), encoding="utf-8")
    for attempt in (lambda: open_index(out), lambda: build(source, out)):
        with pytest.raises(
            ArtifactError, match=r"format 1 of older raft; this one reads 2\. Make it again with --overwrite"
        ):
            attempt()
    if stopped:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(versions, "_clear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            patched.setattr(versions, "remove_leftovers", lambda *_: None)
            build(source, out, overwrite=True)
    build(source, out, overwrite=True)
    assert sorted(path.name for path in (out / "bm25").iterdir()) == ["mine.txt"]
    assert {path.name for path in out.iterdir()} - {"v1", "v2"} == {"bm25", "manifest.json"}
    assert (source / "rent.md").exists()
    assert len(open_index(out).chunks) == 2
    assert verify_index(out).problems == ()


def test_what_is_no_index_is_never_replaced(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", FILES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "manifest.json").write_text('{"kind": "dataset", "format": 2}')
    (dataset / "train.jsonl").write_text("paid for")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "dataset", "file"):
        with pytest.raises(ArtifactError, match="never replaced"):
            build(source, tmp_path / name, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (dataset / "train.jsonl").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "file", "mine", "source"]
    with pytest.raises(UsageError, match="lies inside the source"):
        build(source, source / "index")


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_another_kind_of_search_needs_a_word_and_encodes_nothing(tmp_path: Path, kind: str) -> None:
    source, out = write_files(tmp_path / "source", FILES), tmp_path / "index"
    build(source, out)
    recipe = DenseRecipe.model_validate({"kind": kind})
    with pytest.raises(ArtifactError, match=r"dense.kind: was 'auto'"):
        build(source, out, dense=recipe)
    assert build(source, out, dense=recipe, overwrite=True).encoded == 0
