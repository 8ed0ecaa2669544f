"""How citations and passages reach clients that know nothing of the ``raft`` object.

url_citation      message.annotations     what the openai client and Open WebUI keep: title and address
context           message.context         the form of Azure's "on your data"
file_citation     /v1/responses           what the openai client and LangChain keep, streams too
source event      a chunk of a stream     what Open WebUI shows as full passages (the setting passages_as_events)

All but the source events hold quotes that were found in the documents, and nothing else.
"""

from __future__ import annotations

import json
from typing import Any, Literal
from urllib.parse import quote as percent_encoded

from pydantic import BaseModel

from raft.records import Chunk, Hit
from raft.records import citation as place_of
from raft.serving.engine import Citation, Served

Attributes = dict[str, str | float | bool]
_MOST_OF_AN_ATTRIBUTE = 512  # characters, by OpenAI's rule


class UrlCitation(BaseModel):
    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class ContextCitation(BaseModel):
    """A passage that the answer quotes; ``content`` is its whole text."""

    content: str
    title: str
    url: str
    filepath: str
    chunk_id: str


class Context(BaseModel):
    """``intent`` is a JSON list of what was searched for."""

    citations: list[ContextCitation]
    intent: str


class FileCitation(BaseModel):
    """``index`` is where the citation belongs in the text. What follows it is this server's own: the verbatim quote is
    the document's text from ``start`` to ``end``."""

    type: Literal["file_citation"]
    file_id: str
    filename: str
    index: int
    quote: str
    start: int
    end: int
    title: str
    headings: list[str]
    page: int | None


class SourceName(BaseModel):
    name: str
    id: str


class SourceOfPassage(BaseModel):
    source: str
    name: str


class SourceData(BaseModel):
    source: SourceName
    document: list[str]
    metadata: list[SourceOfPassage]


class SourceEvent(BaseModel):
    type: Literal["source"]
    data: SourceData


def url_citations(served: Served) -> list[Annotation]:
    """One a citation, in the order of ``served.citations``."""
    return [
        Annotation(
            type="url_citation",
            url_citation=UrlCitation(
                start_index=citation.text_start,
                end_index=citation.text_end,
                title=place_of(citation.hit.chunk),
                url=_quote_url(citation),
            ),
        )
        for citation in served.citations
    ]


def context(served: Served) -> Context:
    """Every passage that the answer quotes, once."""
    quoted = {citation.hit.chunk.id: citation.hit.chunk for citation in served.citations}
    citations = [
        ContextCitation(
            content=chunk.text, title=place_of(chunk), url=_url(chunk, chunk.start, chunk.end),
            filepath=chunk.document_id, chunk_id=chunk.id,
        )
        for chunk in quoted.values()
    ]  # fmt: skip
    return Context(citations=citations, intent=json.dumps([served.query], ensure_ascii=False))


def file_citations(served: Served) -> list[FileCitation]:
    """One a citation, in the order of ``served.citations``."""
    return [
        FileCitation(
            type="file_citation", file_id=c.hit.chunk.document_id, filename=c.hit.chunk.document_id,
            index=c.text_end, quote=c.quote, start=c.start, end=c.end,
            title=c.hit.chunk.title, headings=list(c.hit.chunk.headings), page=c.hit.chunk.page,
        )
        for c in served.citations
    ]  # fmt: skip


def source_events(served: Served) -> list[SourceEvent]:
    """One a passage that the model was given, in the order of the prompt: Open WebUI numbers them so."""
    return [
        SourceEvent(
            type="source",
            data=SourceData(
                source=SourceName(name=place_of(hit.chunk), id=hit.chunk.id),
                document=[hit.chunk.text],
                metadata=[SourceOfPassage(source=hit.chunk.document_id, name=place_of(hit.chunk))],
            ),
        )
        for hit in served.hits
    ]


def search_result(hit: Hit) -> dict[str, Any]:
    """What OpenAI's two forms of a search result share. ``score`` tells the order alone, 1/rank."""
    name = hit.chunk.document_id
    return {"file_id": name, "filename": name, "score": 1 / hit.rank, "attributes": attributes_of(hit.chunk)}


def attributes_of(chunk: Chunk) -> Attributes:
    """What a passage is, in the flat form of OpenAI's search results."""
    texts = {"chunk_id": chunk.id, "title": chunk.title, "headings": " > ".join(chunk.headings)}
    numbers = {"start": chunk.start, "end": chunk.end, "page": chunk.page}
    return {
        **{name: text[:_MOST_OF_AN_ATTRIBUTE] for name, text in texts.items()},
        **{name: number for name, number in numbers.items() if number is not None},
    }


def _quote_url(citation: Citation) -> str:
    return _url(citation.hit.chunk, citation.start, citation.end)


def _url(chunk: Chunk, start: int, end: int) -> str:
    """A name for the passage, not an address on this machine; the fragment is RFC 5147's character range."""
    return f"raft:{percent_encoded(chunk.document_id)}#char={start},{end}"
