"""From a recipe to engines over real indexes and models, and to their new versions while they are asked."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import httpx
import pytest
from live import scripted, serving

from raft.artifacts import MANIFEST, publish, read_manifest
from raft.config import ReadingRecipe, RuleRecipe
from raft.config_serve import ServeRecipe
from raft.errors import ArtifactError, UsageError
from raft.indexing.build import build_index
from raft.llm.local import LocalModel
from raft.retrieval.encoder import Encoder
from raft.retrieval.filters import Facets
from raft.retrieval.index import Index
from raft.serving.engine import Asked
from raft.serving.keys import LOCAL, Caller
from raft.serving.open import Stock, open_engine
from raft.serving.reload import Reloader
from tests.evaluation.adapters import make_adapter

_load = lru_cache(None)(Encoder.load)
HR = Caller("hr", frozenset({"hr"}))
NOBODY = Caller("nobody", frozenset())


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "load", classmethod(lambda cls, **settings: _load(**settings)))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped double stands where a model would be loaded: it says which adapter it is."""
    monkeypatch.setattr(
        "raft.llm.open.open_chat_model",
        lambda model, adapter=None, **settings: scripted(f"<ANSWER>: {adapter.name if adapter else 'base'}"),
    )


def write_index(folder: Path, **documents: str) -> Path:
    """Make or update the index ``folder/index`` over these documents; those called hr_... need the label hr."""
    source = folder / "documents"
    source.mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        (source / f"{name}.md").write_text(f"# {name}\n\n{text}\n", encoding="utf-8")
    rules = (RuleRecipe(path="hr_*", labels=("hr",)),)
    build_index(source, folder / "index", rules=rules, reading=ReadingRecipe(workers=1))
    return folder / "index"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_index(tmp_path / "first", dose="Adults start with 12 mg.", hr_pay="The bonus is 400 euros.")


def recipe_of(index: Path, **settings: object) -> ServeRecipe:
    return ServeRecipe.model_validate({"index": index, "search": "bm25", "labels": ("hr",), **settings})


def alive(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


def documents_of(reloader: Reloader, query: str) -> list[str]:
    return [hit.chunk.document_id for hit in reloader.catalog.searched().search(query)]


def test_models_of_a_recipe_are_every_index_through_every_adapter(
    tmp_path: Path, index: Path, no_weights: None, tiny_folder: Path
) -> None:
    law = write_index(tmp_path / "law", lease="Notice is ninety days.")
    careful = make_adapter(tmp_path / "careful", tiny_folder, labels=["hr"])
    before = alive(Index)
    recipe = recipe_of(
        index, collections=[{"name": "law", "index": law}], adapters=[{"name": "careful", "adapter": careful}]
    )
    catalog = Reloader(Stock.open(recipe), 0).catalog
    assert alive(Index) == before + 2
    assert catalog.names(LOCAL) == catalog.names(HR) == ["raft", "raft:law", "raft@careful", "raft:law@careful"]
    assert catalog.names(NOBODY) == ["raft", "raft:law"]
    for name, answer, document in (
        ("raft", "base", "dose.md"), ("raft:law", "base", "lease.md"),
        ("raft@careful", "careful", "dose.md"), ("raft:law@careful", "careful", "lease.md"),
    ):  # fmt: skip
        served = catalog.engine(name, HR).answer(Asked("adults notice"))
        assert (served.answer.final, served.hits[0].chunk.document_id) == (answer, document)
    assert [engine.fingerprint for engine in Stock.open(recipe).engines().values()][::2] == [
        catalog.engine("raft", HR).fingerprint
    ] * 2


def test_what_cannot_be_served_is_refused(tmp_path: Path, index: Path, no_weights: None, tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match="--index"):
        Stock.open(ServeRecipe())
    with pytest.raises(UsageError, match="a collection is called raft"):
        Stock.open(recipe_of(index, collections=[{"name": "raft", "index": index}]))
    secret = make_adapter(tmp_path / "secret", tiny_folder, labels=["board"])
    with pytest.raises(UsageError, match="need the access label board"):
        Stock.open(recipe_of(index, adapters=[{"name": "secret", "adapter": secret}]))
    with pytest.raises(ArtifactError):
        open_engine(recipe_of(tmp_path / "none"))


def test_one_engine_is_opened_without_the_others(index: Path, no_weights: None, tmp_path: Path) -> None:
    recipe = recipe_of(index, collections=[{"name": "law", "index": tmp_path / "none"}])
    assert open_engine(recipe).answer(Asked("adults")).answer.final == "base"


# --- new versions


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is freed by chance."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_an_updated_index_is_served_and_the_old_one_is_kept_for_requests_in_work(
    tmp_path: Path, index: Path, no_weights: None, no_collector: None
) -> None:
    before, facets = alive(Index), alive(Facets)
    reloader = Reloader(Stock.open(recipe_of(index)), 0)
    engine = reloader.catalog.engine("raft", LOCAL)
    old = engine.stream(Asked("12 mg"))
    text = next(old)
    reloader.look()
    assert reloader.catalog.engine("raft", LOCAL) is engine  # nothing has changed
    write_index(tmp_path / "first", dose="Adults start with 20 mg.", fast="Never fast with 20 mg.")
    assert documents_of(reloader, "fast") == []
    reloader.look()
    assert documents_of(reloader, "fast") == ["fast.md"]
    assert reloader.catalog.engine("raft", LOCAL).fingerprint != engine.fingerprint
    assert alive(Index) == before + 2
    del engine
    with pytest.raises(StopIteration) as end:  # the request in work has its documents to the end
        while True:
            text += next(old)
    assert [hit.chunk.text for hit in end.value.value.hits] == ["# dose\n\nAdults start with 12 mg."]
    assert text == "<ANSWER>: base"
    del old, end
    assert alive(Index) == before + 1  # nobody else holds it
    reloader.look()
    assert alive(Facets) == facets + 1  # nor what refers to itself


def test_a_damaged_new_version_is_logged_once_and_the_old_one_stays(
    tmp_path: Path, index: Path, no_weights: None, caplog: pytest.LogCaptureFixture
) -> None:
    reloader = Reloader(Stock.open(recipe_of(index)), 0)
    write_index(tmp_path / "first", fast="Never fast.")
    chunks = index / read_manifest(index, "index").version / "chunks.jsonl"
    whole = chunks.read_bytes()
    chunks.write_bytes(whole.replace(b"fast", b"last"))
    with caplog.at_level(logging.ERROR, logger="raft.serving"):
        reloader.look()
        reloader.look()
    [record] = caplog.records
    assert "what was opened before stays in use" in record.getMessage()
    assert documents_of(reloader, "adults") == ["dose.md"]
    chunks.write_bytes(whole)
    reloader.look()
    assert documents_of(reloader, "fast") == []  # its manifest is that which could not be opened
    reloader.look(again=True)
    assert documents_of(reloader, "fast") == ["fast.md"]


def test_an_index_that_is_gone_for_a_moment_stays(
    tmp_path: Path, index: Path, no_weights: None, caplog: pytest.LogCaptureFixture
) -> None:
    reloader = Reloader(Stock.open(recipe_of(index)), 0)
    index.rename(tmp_path / "away")
    reloader.look()
    assert documents_of(reloader, "adults") == ["dose.md"]
    assert caplog.records == []


def test_an_adapter_made_anew_answers_and_the_old_model_is_freed(
    tmp_path: Path, index: Path, tiny_folder: Path
) -> None:
    gc.collect()
    before = alive(LocalModel)
    make_adapter(tmp_path / "tuned", tiny_folder, seed=1)
    model = {"model": str(tiny_folder), "engine": "transformers", "adapter": tmp_path / "tuned"}
    reloader = Reloader(Stock.open(recipe_of(index, model=model, max_new_tokens=8)), 0)
    said = reloader.catalog.engine("raft", HR).answer(Asked("adults")).answer.text
    old = reloader.catalog.engine("raft", HR).stream(Asked("adults"))
    next(old)
    publish(make_adapter(tmp_path / "new", tiny_folder, seed=2, labels=["hr"]), tmp_path / "tuned")
    reloader.look()
    assert reloader.catalog.engine("raft", HR).answer(Asked("adults")).answer.text != said
    assert reloader.catalog.names(NOBODY) == []  # the new one learned from documents that need a label
    assert alive(LocalModel) == before + 2
    old.close()
    del old
    gc.collect()
    assert alive(LocalModel) == before + 1


def test_a_running_server_takes_the_new_version(tmp_path: Path, index: Path, no_weights: None) -> None:
    reloader = Reloader(Stock.open(recipe_of(index)), 0.02)
    with serving(scripted(), catalog=reloader.catalog, reloader=reloader) as server:

        def found() -> list[str]:
            response = httpx.post(f"{server}/v1/search", json={"query": "fast"}, timeout=30)
            return [row["document_id"] for row in response.raise_for_status().json()["data"]]

        assert found() == []
        write_index(tmp_path / "first", fast="Never fast.")
        wait_until(lambda: found() == ["fast.md"])


def wait_until(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(1000):
        if holds():
            return
        waiting.wait(0.02)
    pytest.fail("it never came about")


def test_sighup_looks_at_once_and_tries_again(tmp_path: Path, index: Path, no_weights: None) -> None:
    reloader = Reloader(Stock.open(recipe_of(index)), 0)
    write_index(tmp_path / "first", fast="Never fast.")
    manifest = (index / MANIFEST).read_bytes()
    (index / MANIFEST).write_bytes(manifest[:-2])
    reloader.look()
    (index / MANIFEST).write_bytes(manifest)

    async def scenario() -> None:
        running = asyncio.create_task(reloader.run())
        await asyncio.sleep(0.05)
        assert documents_of(reloader, "fast") == []  # by itself it never looks
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(1000):
            if documents_of(reloader, "fast"):
                break
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(scenario())
    assert documents_of(reloader, "fast") == ["fast.md"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
