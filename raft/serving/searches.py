"""/v1/search and /v1/models: what a server has, without an answer."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request

from raft.serving import schema
from raft.serving.guard import GuardedRoute
from raft.serving.schema import SearchRequest
from raft.serving.service import caller_of, service_of

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.get("/models")
async def models(request: Request) -> schema.ModelList:
    """The models that the caller may ask."""
    service = service_of(request)
    cards = [
        schema.ModelCard(id=name, object="model", created=service.started, owned_by="raft")
        for name in service.catalog.names(caller_of(request))
    ]
    return schema.ModelList(object="list", data=cards)


@router.post("/search")
async def search(body: SearchRequest, request: Request) -> schema.SearchResponse:
    """The best chunks for a query, best first."""
    service, caller = service_of(request), caller_of(request)
    engine = service.catalog.engine(service.catalog.names(caller)[0], caller)
    hits = await service.searches.run(partial(engine.search, body.query, body.top_k))
    return schema.SearchResponse(object="list", data=schema.documents(hits))
