"""What goes over the wire: what the routes share, above all the ``raft`` object that rides on every answer.

One answer's ``raft`` object (texts shortened)::

    {"version": 1, "answer": "12 mg", "reasoning": "Document [1] says ##begin_quote##Adults start ...",
     "abstained": false, "unverified_quotes": 0, "dropped": 0, "query": "What is the first dose of Corvalexin?",
     "citations": [{"quote": "Adults start with 12 mg by mouth.", "rank": 1, "chunk_id": "formulary/corvalexin.md#0",
                    "document_id": "formulary/corvalexin.md", "title": "Corvalexin", "headings": ["Dosing"],
                    "page": null, "start": 204, "end": 237, "text_start": 34, "text_end": 67}],
     "documents": [{"id": "formulary/corvalexin.md#0", "document_id": "formulary/corvalexin.md", "title": "Corvalexin",
                    "headings": ["Dosing"], "page": null, "start": 180, "end": 960, "text": "# Dosing ...", "rank": 1}]}

``start`` and ``end`` are character offsets (Unicode code points) in the document; ``text_start`` and ``text_end``
are those of the quote in the message. A ``rank`` is the number of the document in the prompt, from 1; ``dropped`` says
how many documents, the last of those that were found, were left out because the model's window does not hold them.
``query`` is what was searched for. Similarity scores stay on the server.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raft.llm.chat import ChatReply
from raft.records import Filter, Hit
from raft.serving.engine import Citation, Served

MAX_QUESTION_CHARACTERS = 4000
MAX_TOP_K = 50
MOST_MESSAGES = 1000  # of a request; longer lists are refused before their parts are looked at
MOST_PARTS = 16  # of a message
_CACHED_STEP = 128


# --- requests. Fields that are not named here are ignored: stock clients send many that mean nothing to a system
# whose decoding settings are those it was evaluated with.


def _is_date(text: str) -> str:
    datetime.date.fromisoformat(f"{text}-01-01"[:10])
    return text


Date = Annotated[str, Field(pattern="^[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?$"), AfterValidator(_is_date)]
Names = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=100)]


class Filters(BaseModel):
    """Which documents may be used: of a source that begins with one of ``sources``, with one of ``tags``, from
    ``since`` to ``until`` (2026-03-01, 2026-03 or 2026, both included). All that are given must hold. Any other name
    is refused: a filter that is overlooked would show too much."""

    model_config = ConfigDict(extra="forbid")

    sources: Names = []
    tags: Names = []
    since: Date | None = None
    until: Date | None = None


ModelName = Annotated[str, Field(max_length=500)]


class Options(BaseModel):
    """This server's own, on every request that searches: ``top_k``, how many passages; ``filters``; and ``labels``, the
    access labels to search with, of those that the key holds: fewer, never more."""

    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K)
    filters: Filters | None = None
    labels: Names | None = None

    def where(self, held: frozenset[str] | None) -> Filter:
        """Which documents are searched for one who holds these labels (None: all that the server was given)."""
        given = self.filters or Filters()
        labels = held
        if self.labels is not None:
            labels = frozenset(self.labels) if held is None else held.intersection(self.labels)
        return Filter(labels, tuple(given.sources), tuple(given.tags), given.since, given.until)


class SearchRequest(Options):
    """``model`` says whose documents are searched; the first one's when it is left out."""

    query: str = Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS)
    model: ModelName | None = None


def checked_question(question: str) -> str:
    """The question. Raises ValueError when there is none, or it is too long."""
    if not question:
        raise ValueError("the last message of the user is empty, or there is none; expected a question")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise ValueError(f"the question has {len(question)} characters; at most {MAX_QUESTION_CHARACTERS} are read")
    return question


# --- responses


class RaftDocument(BaseModel):
    """A retrieved chunk: ``text`` is its document's text from ``start`` to ``end``."""

    id: str
    document_id: str
    title: str
    headings: list[str]
    page: int | None
    start: int
    end: int
    text: str
    rank: int


class RaftCitation(BaseModel):
    """A verbatim quote: ``quote`` is its document's text from ``start`` to ``end``."""

    quote: str
    rank: int
    chunk_id: str
    document_id: str
    title: str
    headings: list[str]
    page: int | None
    start: int
    end: int
    text_start: int
    text_end: int


class RaftObject(BaseModel):
    """``unverified_quotes`` counts quotes of the text that no retrieved chunk holds; they are not citations."""

    version: Literal[1]
    answer: str
    reasoning: str
    abstained: bool
    unverified_quotes: int
    dropped: int
    query: str
    citations: list[RaftCitation]
    documents: list[RaftDocument]


class CachedTokens(BaseModel):
    """``cached_tokens`` of the prompt were read before, and cost next to nothing; see ``told_as_cached``."""

    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


FinishReason = Literal["stop", "length"]


class SearchResponse(BaseModel):
    object: Literal["list"]
    data: list[RaftDocument]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


# --- from records to responses


def error(message: str, *, type: str, param: str | None = None, code: str | None = None) -> ErrorResponse:
    """An error in OpenAI's form."""
    return ErrorResponse(error=ErrorDetail(message=message, type=type, param=param, code=code))


def raft_object(served: Served) -> RaftObject:
    """The versioned object that ``raft ask --json`` prints and that every completion carries."""
    answer = served.answer
    return RaftObject(
        version=1,
        answer=answer.final,
        reasoning=answer.reasoning,
        abstained=answer.abstained,
        unverified_quotes=served.unverified,
        dropped=served.dropped,
        query=served.query,
        citations=[_citation(citation) for citation in served.citations],
        documents=documents(served.hits),
    )


def documents(hits: Sequence[Hit]) -> list[RaftDocument]:
    """The chunks of a search as they are sent, best first, without their scores."""
    return [
        RaftDocument(id=hit.chunk.id, start=hit.chunk.start, end=hit.chunk.end, text=hit.chunk.text, **_source(hit))
        for hit in hits
    ]


def usage(served: Served) -> Usage | None:
    """The model's token counts, or None when it does not count."""
    reply = served.reply
    if reply is None:
        return None
    return Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=told_as_cached(reply)),
    )


def told_as_cached(reply: ChatReply) -> int:
    """The cached tokens as clients are told them, in whole steps of OpenAI's size. The exact number would tell one key
    token by token how another's question begins."""
    return reply.cached_tokens // _CACHED_STEP * _CACHED_STEP


def finish_reason(served: Served) -> FinishReason:
    """``length`` when the text was cut at its limit, else ``stop``."""
    return "length" if served.truncated else "stop"


def _citation(citation: Citation) -> RaftCitation:
    return RaftCitation(
        quote=citation.quote,
        chunk_id=citation.hit.chunk.id,
        start=citation.start,
        end=citation.end,
        text_start=citation.text_start,
        text_end=citation.text_end,
        **_source(citation.hit),
    )


def _source(hit: Hit) -> dict[str, Any]:
    chunk = hit.chunk
    return {
        "rank": hit.rank,
        "document_id": chunk.document_id,
        "title": chunk.title,
        "headings": list(chunk.headings),
        "page": chunk.page,
    }
