"""What goes over the wire: the OpenAI chat completions format, and the ``raft`` object that rides on it.

One answer's ``raft`` object (texts shortened)::

    {"version": 1, "answer": "12 mg", "reasoning": "Document [1] says ##begin_quote##Adults start ...",
     "abstained": false, "unverified_quotes": 0,
     "citations": [{"quote": "Adults start with 12 mg by mouth.", "rank": 1, "chunk_id": "formulary/corvalexin.md#0",
                    "document_id": "formulary/corvalexin.md", "title": "Corvalexin", "headings": ["Dosing"],
                    "page": null, "start": 204, "end": 237, "text_start": 34, "text_end": 67}],
     "documents": [{"id": "formulary/corvalexin.md#0", "document_id": "formulary/corvalexin.md", "title": "Corvalexin",
                    "headings": ["Dosing"], "page": null, "start": 180, "end": 960, "text": "# Dosing ...", "rank": 1}]}

``start`` and ``end`` are character offsets (Unicode code points) in the document; ``text_start`` and ``text_end``
are those of the quote in the message. A ``rank`` is the number of the document in the prompt, from 1. Similarity
scores stay on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote as percent_encoded

from pydantic import BaseModel, Field, model_validator

from raft.records import Hit
from raft.records import citation as place_of
from raft.serving.engine import Citation, Served

MAX_QUESTION_CHARACTERS = 4000
MAX_TOP_K = 50


# --- requests. Fields that are not named here are ignored: stock clients send many that mean nothing to a system
# whose decoding settings are those it was evaluated with.


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """The last user message is the question. ``max_tokens`` (or its newer name) can lower the server's limit on an
    answer's length, not raise it; ``top_k`` is this server's own: how many chunks to retrieve."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: Literal[1] | None = None
    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K)

    @model_validator(mode="after")
    def _asks_something(self) -> ChatCompletionRequest:
        question = self.question
        if not question:
            raise ValueError("the last message of the user is empty, or there is none; expected a question")
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise ValueError(f"the question has {len(question)} characters; at most {MAX_QUESTION_CHARACTERS} are read")
        return self

    @property
    def question(self) -> str:
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "").strip()

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class SearchRequest(BaseModel):
    query: str = Field(min_length=1, max_length=MAX_QUESTION_CHARACTERS)
    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K)


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
    citations: list[RaftCitation]
    documents: list[RaftDocument]


class UrlCitation(BaseModel):
    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[Annotation]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


FinishReason = Literal["stop", "length"]


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None
    raft: RaftObject


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    annotations: list[Annotation] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: None


class ChatCompletionChunk(BaseModel):
    """One event of a stream. The last one before ``[DONE]`` carries ``raft``, and ``usage`` when it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    raft: RaftObject | None = None


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


class Health(BaseModel):
    status: Literal["ready"]
    model: str
    index: str


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail


# --- from records to responses


def raft_object(served: Served) -> RaftObject:
    """The versioned object that ``raft ask --json`` prints and that every completion carries."""
    answer = served.answer
    return RaftObject(
        version=1,
        answer=answer.final,
        reasoning=answer.reasoning,
        abstained=answer.abstained,
        unverified_quotes=served.unverified,
        citations=[_citation(citation) for citation in served.citations],
        documents=documents(served.hits),
    )


def documents(hits: Sequence[Hit]) -> list[RaftDocument]:
    """The chunks of a search as they are sent, best first, without their scores."""
    return [
        RaftDocument(id=hit.chunk.id, start=hit.chunk.start, end=hit.chunk.end, text=hit.chunk.text, **_source(hit))
        for hit in hits
    ]


def url_citations(served: Served) -> list[Annotation]:
    """The citations in the form that stock clients keep; same order as ``raft_object(served).citations``."""
    return [
        Annotation(
            type="url_citation",
            url_citation=UrlCitation(
                start_index=citation.text_start,
                end_index=citation.text_end,
                title=place_of(citation.hit.chunk),
                url=_passage_url(citation),
            ),
        )
        for citation in served.citations
    ]


def usage(served: Served) -> Usage | None:
    """The model's token counts, or None when it does not count."""
    reply = served.reply
    if reply is None:
        return None
    total = reply.prompt_tokens + reply.completion_tokens
    return Usage(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens, total_tokens=total)


def finish_reason(served: Served) -> FinishReason:
    """``length`` when the text was cut at its limit, else ``stop``."""
    return "length" if served.reply is not None and served.reply.truncated else "stop"


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


def _passage_url(citation: Citation) -> str:
    """A name for the passage, not an address on this machine; the fragment is RFC 5147's character range."""
    return f"raft:{percent_encoded(citation.hit.chunk.document_id)}#char={citation.start},{citation.end}"
