"""Model names, and who may ask which."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
from live import DOSES, FINGERPRINT, STORAGE, MemoryIndex, scripted, serving

from raft.serving.catalog import Catalog, model_name
from raft.serving.engine import AnswerEngine
from raft.serving.guard import Guard
from raft.serving.http_errors import Refused
from raft.serving.keys import LOCAL, Caller, KeyFile, add_key


def engine(*needs: str, answer: str = "<ANSWER>: 1") -> AnswerEngine:
    return AnswerEngine(MemoryIndex(), scripted(answer), FINGERPRINT, needs=frozenset(needs))


CATALOG = Catalog({"raft": engine(), "raft:law": engine(), "raft@hr": engine("hr"), "raft:law@hr": engine("hr", "law")})


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (None, ["raft", "raft:law", "raft@hr", "raft:law@hr"]),
        (frozenset(), ["raft", "raft:law"]),
        (frozenset({"hr"}), ["raft", "raft:law", "raft@hr"]),
        (frozenset({"hr", "law", "it"}), ["raft", "raft:law", "raft@hr", "raft:law@hr"]),
        (frozenset({"law"}), ["raft", "raft:law"]),
    ],
)
def test_a_model_is_for_those_who_hold_all_its_labels(labels: frozenset[str] | None, names: list[str]) -> None:
    caller = Caller("someone", labels)
    assert CATALOG.names(caller) == names
    for name in ("raft", "raft:law", "raft@hr", "raft:law@hr", "other"):
        if name in names:
            assert CATALOG.engine(name, caller) is not None
            continue
        with pytest.raises(Refused) as caught:
            CATALOG.engine(name, caller)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        unknown = str(caught.value).replace(repr(name), "?")
        with pytest.raises(Refused) as other:
            CATALOG.engine("unheard-of", caller)
        assert unknown == str(other.value).replace("'unheard-of'", "?")  # hidden and unknown look alike


def test_names_of_models() -> None:
    assert [model_name(), model_name("law"), model_name(adapter="hr"), model_name("law", "hr")] == [
        "raft", "raft:law", "raft@hr", "raft:law@hr",
    ]  # fmt: skip


def test_a_collection_is_searched_whatever_its_model_needs() -> None:
    first = engine("hr")
    catalog = Catalog({"raft": first})
    assert catalog.names(Caller("someone", frozenset())) == []
    assert catalog.searched() is catalog.searched("raft") is first
    with pytest.raises(Refused, match="'law' does not exist"):
        catalog.searched("law")


@pytest.mark.parametrize("name", ["law@hr", "raft@hr", "law@unheard-of"])
def test_a_search_says_nothing_of_adapters(name: str) -> None:
    with pytest.raises(Refused) as caught:
        CATALOG.searched(name)
    assert (caught.value.status, str(caught.value)) == (404, f"the vector store {name!r} does not exist")


def test_as_many_answers_at_once_as_the_model_that_makes_most() -> None:
    one, many = scripted(), scripted()
    one.concurrency, many.concurrency = 1, 7
    engines = {str(n): AnswerEngine(MemoryIndex(), model, FINGERPRINT) for n, model in enumerate((one, many))}
    assert Catalog(engines).concurrency == 7


def test_swapped_engines_answer_from_then_on() -> None:
    catalog, new = Catalog({"raft": engine()}), engine()
    catalog.swap({"raft": new})
    assert catalog.engine("raft", LOCAL) is new


def test_the_model_s_name_chooses_index_and_adapter() -> None:
    law = MemoryIndex((STORAGE,))
    more = {
        "raft:law": AnswerEngine(law, scripted("<ANSWER>: first model"), FINGERPRINT),
        "raft:law@careful": AnswerEngine(law, scripted("<ANSWER>: careful"), FINGERPRINT),
    }
    with serving(scripted("<ANSWER>: raft"), (DOSES,), more=more) as server:
        for name, answer, document in (
            ("raft", "raft", DOSES), ("raft:law", "first model", STORAGE), ("raft:law@careful", "careful", STORAGE),
        ):  # fmt: skip
            asked = {"model": name, "messages": [{"role": "user", "content": "Dose?"}]}
            raft = httpx.post(f"{server}/v1/chat/completions", json=asked).json()["raft"]
            assert (raft["answer"], [d["document_id"] for d in raft["documents"]]) == (answer, [document.id])
            found = httpx.post(f"{server}/v1/search", json={"query": "Dose?", "model": name}).json()
            assert [d["document_id"] for d in found["data"]] == [document.id]
        client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=30)
        listed = list(client.models.list())
        assert [card.id for card in listed] == ["raft", *more]
        assert [client.models.retrieve(name) for name in ("raft", *more)] == listed
        with pytest.raises(openai.NotFoundError, match="the model 'raft@other' does not exist"):
            client.models.retrieve("raft@other")


def test_a_model_that_a_key_may_not_ask_cannot_be_looked_up(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.jsonl", "open")
    headers = {"Authorization": f"Bearer {key}"}
    with serving(scripted(), catalog=CATALOG, guard=Guard(None, KeyFile(tmp_path / "keys.jsonl"))) as server:
        said = [httpx.get(f"{server}/v1/models/{name}", headers=headers) for name in ("raft@hr", "raft@no", "raft:law")]
        assert httpx.get(f"{server}/v1/models/raft").status_code == 401
    assert [answer.status_code for answer in said] == [404, 404, 200]
    assert said[0].text.replace("raft@hr", "?") == said[1].text.replace("raft@no", "?")
