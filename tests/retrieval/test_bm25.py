"""BM25 against its formula written out, and the words that exact search must keep."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import ArtifactError
from raft.records import Chunk
from raft.retrieval.bm25 import Bm25Index, title_of, top, words

TEXTS = [
    "Fees fall due under clause 12.3 of the lease.",
    "Clause 12 names the parties; clause 3 the land.",
    "The fee is 1,500 marks, the fine 15 marks, and the fee is paid late.",
    "Not a word in common.",
]


def obvious_bm25(texts: list[str], query: str, titles: list[str] | None = None) -> list[float]:
    """BM25F with Lucene's idf, chunk by chunk: k1 = 1.2, b = 0.75, the title counts 5 and has no length."""
    k1, b, title_weight = 1.2, 0.75, 5.0
    tokenized = words(texts)
    named = [set(title) for title in words(titles or [""] * len(texts))]
    mean = (sum(map(len, tokenized)) or 1) / len(tokenized)
    scores = []
    for tokens, title in zip(tokenized, named, strict=True):
        score, counts = 0.0, Counter(tokens)
        for word in words([query])[0]:
            holding = sum(word in other or word in head for other, head in zip(tokenized, named, strict=True))
            if holding:
                idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
                tf = counts[word] / (1 - b + b * len(tokens) / mean) + title_weight * (word in title)
                score += idf * tf / (k1 + tf)
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["clause 12.3", "late fees", "the marks of the land", "nothing here", "", "the of"])
def test_scores_equal_the_formula(query: str) -> None:
    assert Bm25Index.build(TEXTS).scores(query) == pytest.approx(obvious_bm25(TEXTS, query), rel=1e-5)


TITLES = ["Lease of the Mill House", "Lease of the Mill House", "Scale of fees", ""]


@pytest.mark.parametrize("query", ["fees of the mill house", "lease clause 3", "scale", "marks", "unknown"])
def test_titles_are_a_field_of_their_own(query: str) -> None:
    scores = Bm25Index.build(TEXTS, TITLES).scores(query)
    assert scores == pytest.approx(obvious_bm25(TEXTS, query, TITLES), rel=1e-5)


def test_a_text_that_repeats_its_title_does_not_outrank_the_clause_asked_for() -> None:
    title = "Supply agreement of Zentrum and Aldermoor"
    texts = [
        "Zentrum and Aldermoor sign. Zentrum: Smith. Aldermoor: Jones. Zentrum, Aldermoor.",
        "Fees: either side may end the supply with a notice of ninety days, which must be sent by registered letter.",
        "The price is fixed.",
    ]
    query = "What notice ends the supply agreement of Zentrum and Aldermoor?"
    assert top(Bm25Index.build(texts, [title] * 3).scores(query), 1)[0][0] == 1


def test_the_title_of_a_chunk_is_its_document_s_and_its_headings() -> None:
    chunk = Chunk("a#0", "a", "Notice is ninety days.", 0, 22, "Lease", ("Part 2", "Ending"))
    assert title_of(chunk) == "Lease > Part 2 > Ending"
    assert title_of(replace(chunk, title="", headings=())) == ""


def test_titles_must_be_as_many_as_texts() -> None:
    with pytest.raises(ValueError, match="4 texts and 1 titles"):
        Bm25Index.build(TEXTS, ["one"])


def test_numbers_keep_their_points() -> None:
    assert words(["Under clause 12.3, fees of 1,500 fall due. See 4."]) == [
        ["under", "claus", "12.3", "fee", "1,500", "fall", "due", "see", "4"]
    ]
    ranked = top(Bm25Index.build(TEXTS).scores("12.3"), 4)
    assert [position for position, _ in ranked] == [0]


def test_saved_and_loaded_it_scores_the_same(tmp_path: Path) -> None:
    built = Bm25Index.build(TEXTS)
    built.save(tmp_path)
    loaded = Bm25Index.load(tmp_path)
    assert len(loaded) == len(TEXTS)
    for query in ("late fees", "clause 12.3", "unknown"):
        assert np.array_equal(built.scores(query), loaded.scores(query))


@pytest.mark.parametrize("texts", [["the of and"], ["...", "!!"], [""], []])
def test_a_corpus_without_words_finds_nothing(texts: list[str], tmp_path: Path) -> None:
    Bm25Index.build(texts).save(tmp_path)
    assert top(Bm25Index.load(tmp_path).scores("the word"), 5) == []


def test_files_of_another_shape_are_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        Bm25Index.load(tmp_path)


def test_scores_equal_those_of_bm25s() -> None:
    import bm25s

    texts = [*TEXTS, "fee " * 40, ""]
    retriever = bm25s.BM25(backend="numpy", k1=1.2, b=0.75)
    retriever.index(words(texts), show_progress=False)
    for query in ("late fees of clause 12.3", "fee fee fee", "15 marks"):
        known = retriever.get_tokens_ids(words([query])[0])
        expected = retriever.get_scores_from_ids(known)
        assert Bm25Index.build(texts).scores(query) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "content"), [("rows", b""), ("rows", b"\x93NUMPY"), ("weights", None)])
def test_a_damaged_file_is_an_artifact_error(name: str, content: bytes | None, tmp_path: Path) -> None:
    Bm25Index.build(TEXTS).save(tmp_path)
    path = tmp_path / "bm25" / f"{name}.npy"
    path.write_bytes((tmp_path / "bm25" / "rows.npy").read_bytes() if content is None else content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Bm25Index.load(tmp_path)


def same_arrays(first: Bm25Index, second: Bm25Index) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(Bm25Index)]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


text = st.lists(st.sampled_from(["lease", "leases", "the", "12.3", "12", "été", "rent", "zone"]), max_size=6).map(
    " ".join
)


@given(st.lists(text, max_size=8), st.data())
def test_an_update_equals_a_build(texts: list[str], data: st.DataObject) -> None:
    """Kept chunks in any order, some dropped, new ones anywhere between them."""
    kept = data.draw(st.permutations(range(len(texts))))[: data.draw(st.integers(0, len(texts)))]
    new = data.draw(st.lists(text, max_size=4))
    places = data.draw(st.permutations([*kept, *[-1] * len(new)]))
    coming = iter(new)
    changed = [texts[row] if row >= 0 else next(coming) for row in places]
    titles, new_titles, changed_titles = ([t[:7] for t in some] for some in (texts, new, changed))
    assert same_arrays(Bm25Index.build(texts).update(places, new), Bm25Index.build(changed))
    updated = Bm25Index.build(texts, titles).update(places, new, new_titles)
    assert same_arrays(updated, Bm25Index.build(changed, changed_titles))


def test_an_opened_index_can_be_updated_and_forgets_the_words_of_what_was_removed(tmp_path: Path) -> None:
    Bm25Index.build([*TEXTS, "Zyxomma alone is here."]).save(tmp_path / "old")
    assert b"zyxomma" in (tmp_path / "old" / "bm25" / "terms.npy").read_bytes()
    Bm25Index.load(tmp_path / "old").update([0, 1, -1, 3], ["Another text."]).save(tmp_path / "new")
    assert b"zyxomma" in Bm25Index.load(tmp_path / "old").vocabulary()
    assert b"zyxomma" not in Bm25Index.load(tmp_path / "new").vocabulary()
    assert not any(b"zyxomma" in path.read_bytes() for path in (tmp_path / "new" / "bm25").iterdir())
    fresh = Bm25Index.build([TEXTS[0], TEXTS[1], "Another text.", TEXTS[3]])
    assert same_arrays(Bm25Index.load(tmp_path / "new"), fresh)


def test_an_update_wants_a_text_for_every_new_row() -> None:
    with pytest.raises(ValueError, match="2 rows are new and 1 texts are given"):
        Bm25Index.build(TEXTS).update([0, -1, -1], ["one"])


@given(st.text(max_size=30), st.text(max_size=12))
def test_any_text_can_be_indexed_and_asked(body: str, query: str) -> None:
    scores = Bm25Index.build([body, "lease"]).scores(query)
    assert scores == pytest.approx(obvious_bm25([body, "lease"], query), rel=1e-5)


def test_files_do_not_depend_on_the_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from raft.retrieval.bm25 import Bm25Index; " \
           f"Bm25Index.build({TEXTS!r}).save(Path(sys.argv[1]))"  # fmt: skip
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)], env={**os.environ, "PYTHONHASHSEED": seed}, check=True
        )
    for path in (tmp_path / "1" / "bm25").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / "bm25" / path.name).read_bytes()


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), max_size=30), st.integers(1, 35))
def test_top_equals_sorting_everything(scores: list[float], k: int) -> None:
    expected = sorted(((i, s) for i, s in enumerate(scores) if s > 0), key=lambda item: (-item[1], item[0]))[:k]
    assert top(np.array(scores, dtype=np.float32), k) == expected
