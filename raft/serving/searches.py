"""/v1/search, OpenAI's /v1/vector_stores/{id}/search and /v1/models: what a server has, without an answer."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from raft.records import Hit
from raft.serving import schema
from raft.serving.answering import Call, search, unless_left
from raft.serving.carriers import Attributes, search_result
from raft.serving.catalog import FIRST, model_name
from raft.serving.engine import AnswerEngine, Asked
from raft.serving.guard import GuardedRoute
from raft.serving.openapi import errors
from raft.serving.schema import Options, SearchRequest
from raft.serving.service import Service, caller_of, service_of

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.get("/models")
async def models(request: Request) -> schema.ModelList:
    """The models that the caller may ask."""
    service = service_of(request)
    names = service.catalog.names(caller_of(request))
    return schema.ModelList(object="list", data=[_card(service, name) for name in names])


@router.get("/models/{model}", responses=errors(404))
async def model_of(model: str, request: Request) -> schema.ModelCard:
    """One model that the caller may ask."""
    service = service_of(request)
    service.catalog.engine(model, caller_of(request))  # or it is refused
    return _card(service, model)


def _card(service: Service, name: str) -> schema.ModelCard:
    return schema.ModelCard(id=name, object="model", created=service.started, owned_by="raft")


@router.post("/search", responses=errors(404, 502, 504), name="search")
async def search_passages(body: SearchRequest, request: Request) -> schema.SearchResponse:
    """The best passages for a query, best first."""
    catalog = service_of(request).catalog
    asked = Asked(body.query, top_k=body.top_k, where=body.where(caller_of(request).labels))
    call = Call(_new_id(), "search", caller_of(request), body.model or FIRST, asked)
    engine = catalog.searched() if body.model is None else catalog.engine(body.model, call.asker)
    return schema.SearchResponse(object="list", data=schema.documents(await _searched(request, call, engine)))


async def _searched(request: Request, call: Call, engine: AnswerEngine) -> list[Hit]:
    return await unless_left(request, search(service_of(request), call, engine))


def _new_id() -> str:
    return f"search-{uuid.uuid4().hex}"


# --- OpenAI's form: a collection is a vector store, whose id is its name; "raft" is the first index


Query = Annotated[str, Field(min_length=1, max_length=schema.MAX_QUESTION_CHARACTERS)]


class VectorStoreSearchRequest(Options):
    """``filters`` are this server's own, and of OpenAI's form none; ``rewrite_query`` and ``ranking_options`` are
    ignored."""

    query: Query | Annotated[list[Query], Field(min_length=1, max_length=8)]
    max_num_results: int = Field(10, ge=1, le=schema.MAX_TOP_K)

    @property
    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query

    @model_validator(mode="after")
    def _is_short(self) -> VectorStoreSearchRequest:
        schema.checked_question(" ".join(self.queries))
        return self


class TextContent(BaseModel):
    type: Literal["text"]
    text: str


class VectorStoreResult(BaseModel):
    """A passage. ``score`` tells the order alone, 1/rank: similarities stay on the server."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: list[TextContent]


class VectorStoreSearchPage(BaseModel):
    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[VectorStoreResult]
    has_more: bool
    next_page: None


@router.post("/vector_stores/{vector_store_id}/search", responses=errors(404, 502, 504))
async def search_vector_store(
    vector_store_id: str, body: VectorStoreSearchRequest, request: Request
) -> VectorStoreSearchPage:
    """The best passages of one collection, best first."""
    where = body.where(caller_of(request).labels)
    asked = Asked(" ".join(body.queries), top_k=body.top_k or body.max_num_results, where=where)
    call = Call(_new_id(), "search", caller_of(request), model_name(vector_store_id), asked)
    hits = await _searched(request, call, service_of(request).catalog.searched(vector_store_id))
    return VectorStoreSearchPage(
        object="vector_store.search_results.page", search_query=body.queries,
        data=[_result(hit) for hit in hits], has_more=False, next_page=None,
    )  # fmt: skip


def _result(hit: Hit) -> VectorStoreResult:
    return VectorStoreResult(content=[TextContent(type="text", text=hit.chunk.text)], **search_result(hit))
