"""The page on which people review a dataset, and the JSON behind it.

    GET  /api/dataset                    what is reviewed: name, reviewer, progress, types, reasons, the way to apply
    GET  /api/questions?status=...       a page of questions, filtered, in file order
    GET  /api/questions/ID               one question with its evidence and one example
    POST /api/questions/ID/decision      {"decision": "accept"}, {"decision": "reject", "reason": "wrong answer"}, ...

It writes to a folder of yours and has no keys, so it takes only requests that are addressed to this machine by name
and, where they decide something, come as JSON from its own page: no other site that a reviewer has open can forge one.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException

from raft.corpus.spans import find_span
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.review import Review, sample_of
from raft.dataset.review_apply import rendered
from raft.dataset.trail import STATUSES, Status, TrailRow, Words, words_of
from raft.errors import RaftError, UsageError
from raft.records import Split, citation
from raft.serving.guard import is_addressed_here, is_loopback
from raft.serving.middleware import SECURE_HEADERS, BodyLimit, Receive, SecureHeaders, Send
from raft.serving.operations import WEB

REASONS = (
    "wrong answer", "answer not in the documents", "question unclear", "question trivial", "needs other documents",
    "repeats another question", "personal data",
)  # fmt: skip
MOST_IN_A_PAGE = 200
_SAFE_METHODS = {"GET", "HEAD"}
_LONGEST = 20_000  # characters of one field


@dataclass(frozen=True, slots=True)
class Desk:
    """What the routes share: the dataset and the ids of the questions that are to be reviewed, in file order."""

    review: Review
    question_ids: tuple[str, ...]


class QuoteBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    chunk_id: str = Field(max_length=_LONGEST)
    text: str = Field(max_length=_LONGEST)


class WordsBody(BaseModel):
    """A question as the reviewer wants it."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(max_length=_LONGEST)
    answer: str = Field(max_length=_LONGEST)
    reasoning: str = Field(max_length=_LONGEST)
    quotes: list[QuoteBody] = Field(max_length=20)


class DecisionBody(BaseModel):
    """``words`` belongs to an edit, ``reason`` to a rejection; ``override`` takes an edit in spite of warnings."""

    model_config = ConfigDict(extra="forbid")
    decision: Literal["accept", "edit", "reject", "undo"]
    reason: str = Field("", max_length=1000)
    words: WordsBody | None = None
    override: bool = False


def create_review_app(review: Review, *, split: Split | None = None, sample: int | None = None) -> FastAPI:
    """The application over an open review: the questions of a split (None: of all), or ``sample`` of them at random.

    Raises UsageError when there are none.
    """
    ids = [name for name, item in review.items.items() if split is None or item.split == split]
    if not ids:
        raise UsageError(f"{review.folder} has no question in {split}", "Name another --split")
    chosen = ids if sample is None else sample_of(ids, sample)
    app = FastAPI(title="raft review", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = Desk(review, tuple(chosen))
    app.include_router(routes)
    app.mount("/static", StaticFiles(directory=WEB), name="static")
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RaftError, _on_raft_error)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(BodyLimit)
    app.add_middleware(OwnPageOnly)
    app.add_middleware(SecureHeaders)
    return app


# --- what is shown -------------------------------------------------------------------------------------------------


def progress(desk: Desk) -> dict[str, Any]:
    """How many questions have which status; and the last decision that stands on one of them, if any."""
    found = Counter(desk.review.status(name) for name in desk.question_ids)
    ours = frozenset(desk.question_ids)
    last = next((row for row in reversed(desk.review.trail_rows) if row["question_id"] in ours), None)
    return {
        "total": len(desk.question_ids), **{status: found[status] for status in STATUSES},
        "last_decided": last and last["question_id"],
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Filters:
    """Which questions are listed; empty ones let all pass. ``document`` and ``search`` are looked for as substrings."""

    status: Status | Literal["flagged", ""] = ""
    question_type: str = ""
    document: str = ""
    search: str = ""

    def passes(self, item: GroundedQuestion, status: Status) -> bool:
        of_status = bool(item.flags) if self.status == "flagged" else self.status in ("", status)
        return (
            of_status
            and self.question_type in ("", item.question_type)
            and (not self.document or any(_holds(name, self.document) for name in item.document_ids))
            and (not self.search or any(_holds(t, self.search) for t in (item.id, item.question, item.answer)))
        )


def _holds(text: str, sought: str) -> bool:
    return sought.casefold() in text.casefold()


def page_of(desk: Desk, filters: Filters, after: str | None, before: str | None, limit: int) -> dict[str, Any]:
    """At most ``limit`` questions that pass: the first ones behind the question ``after``, the last ones in front of
    ``before``, else the first. A question holds its place whether it passes or not, so that pages stand still while
    what they list is decided on."""
    place = {name: n for n, name in enumerate(desk.question_ids)}
    review = desk.review
    passing = [name for name in desk.question_ids if filters.passes(review.now(name), review.status(name))]
    if before in place:
        chosen = [name for name in passing if place[name] < place[before]][-limit:]
    else:
        chosen = [name for name in passing if after not in place or place[name] > place[after]][:limit]
    first = sum(place[name] < place[chosen[0]] for name in passing) if chosen else 0
    rows = [_listed(review.now(name), review.status(name)) for name in chosen]
    return {"questions": rows, "first": first, "total": len(passing)}


def _listed(item: GroundedQuestion, status: Status) -> dict[str, Any]:
    return {
        "id": item.id, "question": item.question, "answer": item.answer, "status": status, "split": item.split,
        "question_type": item.question_type, "flags": item.flags,
    }  # fmt: skip


def shown(desk: Desk, question_id: str) -> dict[str, Any]:
    """A question as a reviewer sees it; offsets of quotes count code points of their chunk's text."""
    review = desk.review
    item, made = review.now(question_id), review.items[question_id]
    return {
        **_listed(item, review.status(question_id)), "words": asdict(words_of(item)), "made": asdict(words_of(made)),
        "answer_type": item.answer_type, "aliases": item.aliases, "source": item.source,
        "documents": item.document_ids, "warnings": review.warnings(item),
        "decisions": [_decided(row) for row in review.decisions(question_id)],
        "oracles": [_oracle(review, name, item) for name in made.oracle_ids], "example": _example(review, item),
    }  # fmt: skip


def _decided(row: TrailRow) -> dict[str, Any]:
    return {name: row.get(name) for name in ("when", "who", "decision", "reason", "overridden")}


def _oracle(review: Review, chunk_id: str, item: GroundedQuestion) -> dict[str, Any]:
    chunk = review.chunk(chunk_id)
    spans = [find_span(chunk.text, quote.text) for quote in item.quotes if quote.chunk_id == chunk_id]
    return {
        "chunk_id": chunk_id, "document_id": chunk.document_id, "place": citation(chunk), "text": chunk.text,
        "spans": sorted(span for span in spans if span is not None),
    }  # fmt: skip


def _example(review: Review, item: GroundedQuestion) -> dict[str, Any] | None:
    """The context of one example, and the target as the student would see it after the decisions."""
    example = review.example(item.id)
    if example is None:
        return None
    now = example if item == review.items[item.id] else rendered(review, example, item)
    chunks = [review.chunk(name) for name in example.context]
    return {
        "id": example.id, "oracle_present": example.oracle_present, "target": now.target,
        "context": [
            {"chunk_id": c.id, "place": citation(c), "text": c.text, "oracle": c.id in example.oracle_ids}
            for c in chunks
        ],
    }  # fmt: skip


# --- the routes ----------------------------------------------------------------------------------------------------

routes = APIRouter()


def _desk(request: Request, question_id: str | None = None) -> Desk:
    desk: Desk = request.app.state.desk
    if question_id is not None and question_id not in desk.review.items:
        raise HTTPException(404, f"the dataset has no question {question_id!r}")
    return desk


@routes.get("/")
async def page() -> FileResponse:
    return FileResponse(WEB / "review.html")


@routes.get("/api/dataset")
async def dataset(request: Request) -> dict[str, Any]:
    desk = _desk(request)
    review = desk.review
    return {
        "name": review.folder.resolve().name, "reviewer": review.reviewer, "fingerprint": review.manifest.fingerprint,
        "types": sorted({review.items[name].question_type for name in desk.question_ids}), "reasons": REASONS,
        "apply": f"raft review {shlex.quote(str(review.folder))} --apply", "progress": progress(desk),
    }  # fmt: skip


@routes.get("/api/questions")
async def questions(
    request: Request,
    status: Literal["", "undecided", "accepted", "edited", "rejected", "flagged"] = "",
    question_type: str = Query("", alias="type", max_length=100),
    document: str = Query("", max_length=1000),
    search: str = Query("", max_length=1000),
    after: str | None = Query(None, max_length=_LONGEST),
    before: str | None = Query(None, max_length=_LONGEST),
    limit: int = Query(100, ge=1, le=MOST_IN_A_PAGE),
) -> dict[str, Any]:
    """A page of the questions that pass the filters."""
    desk = _desk(request)
    found = page_of(desk, Filters(status, question_type, document, search), after, before, limit)
    return found | {"progress": progress(desk)}


@routes.get("/api/questions/{question_id:path}")
async def question(question_id: str, request: Request) -> dict[str, Any]:
    return shown(_desk(request, question_id), question_id)


@routes.post("/api/questions/{question_id:path}/decision")
async def decision(question_id: str, body: DecisionBody, request: Request) -> Any:
    """The question after the decision, and the progress; 409 with the warnings for which an edit was not taken."""
    desk = _desk(request, question_id)
    words = None
    if body.words is not None:
        quotes = tuple(Passage(quote.chunk_id, quote.text) for quote in body.words.quotes)
        words = Words(body.words.question, body.words.answer, body.words.reasoning, quotes)
    warned = desk.review.decide(question_id, body.decision, body.reason, words, body.override)
    if warned:
        return _error(409, "the quality gate would refuse this", warnings=warned)
    return {"question": shown(desk, question_id), "progress": progress(desk)}


# --- errors, and who may ask ---------------------------------------------------------------------------------------


def _error(status: int, message: str, warnings: Sequence[str] = (), headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "warnings": list(warnings)}}, status, headers)


def _on_invalid(request: Request, error: Any) -> JSONResponse:
    said = (f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors())
    return _error(400, "; ".join(said))


def _on_http_error(request: Request, error: Any) -> JSONResponse:
    return _error(error.status_code, str(error.detail))


def _on_raft_error(request: Request, error: Any) -> JSONResponse:
    return _error(422, str(error))  # told in full: who asks sits at this machine


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    return _error(500, "internal error", headers=SECURE_HEADERS)


class OwnPageOnly:
    """ASGI middleware: refuses what is not addressed to this machine at this port (a foreign site may point its own
    name at 127.0.0.1), and whatever decides something unless it is JSON from the server's own page."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        refusal = next(_refusals(scope), None) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)


def _refusals(scope: MutableMapping[str, Any]) -> Iterator[JSONResponse]:
    headers = Headers(scope=scope)  # type: ignore[arg-type]
    host = headers.get("host", "")
    port = re.search(r":([0-9]+)$", host)
    if (port[1] if port else "80") != str(scope["server"][1]) or not is_addressed_here(host):
        yield _error(403, "this server is reached as localhost only")
    if scope["method"] in _SAFE_METHODS:
        return
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        yield _error(415, "a decision is sent as application/json")
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        yield _error(403, "a decision comes from the server's own page")


def check_loopback(host: str) -> None:
    """Raise UsageError when ``host`` can be reached from other machines: no keys protect a review."""
    if not is_loopback(host):
        raise UsageError(f"host {host} can be reached from other machines, and a review has no keys",
                         "Review on 127.0.0.1")  # fmt: skip
