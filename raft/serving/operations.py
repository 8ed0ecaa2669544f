"""The page, and what those who run a server ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel

from raft.prompts import ANSWER_MARK, QUOTE_BEGIN, QUOTE_END
from raft.serving import schema
from raft.serving.keys import LOCAL
from raft.serving.metrics import CONTENT_TYPE
from raft.serving.openapi import errors
from raft.serving.service import service_of

WEB = Path(__file__).parent / "web"
router = APIRouter()


class Probe(BaseModel):
    """All that a probe is told: it needs no key."""

    status: Literal["alive", "ready", "not ready"]


@router.get("/healthz")
async def healthz() -> Probe:
    """The process lives."""
    return Probe(status="alive")


@router.get("/readyz", responses={503: {"model": Probe, "description": "Not ready"}})
async def readyz(request: Request, response: Response) -> Probe:
    """Whether a question would be taken now: there is something to ask, room in both queues, and no stop under way."""
    service = service_of(request)
    full = service.answers.full or service.searches.full
    if service.catalog.names(LOCAL) and not full and not request.app.state.drain.stopping:
        return Probe(status="ready")
    response.status_code = 503
    return Probe(status="not ready")


@router.get("/metrics", response_class=PlainTextResponse, responses=errors(401, 403))
async def metrics(request: Request) -> Response:
    """Figures for Prometheus; with a key, where the server has keys."""
    service_of(request).guard.caller_of(request)
    return PlainTextResponse(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    """The page. It holds nothing that a key would be needed for; it asks for that as any client does."""
    from jinja2 import Template

    template = Template((WEB / "index.html").read_text(encoding="utf-8"), autoescape=True)
    return HTMLResponse(
        template.render(
            max_characters=schema.MAX_QUESTION_CHARACTERS,
            keyed=_asks_for_keys(request),
            feedback=service_of(request).feedback is not None,
            quote_begin=QUOTE_BEGIN,
            quote_end=QUOTE_END,
            answer_mark=ANSWER_MARK,
        )
    )


def _asks_for_keys(request: Request) -> bool:
    """Whether this very request, which has no key, would be refused for want of one."""
    try:
        service_of(request).guard.caller_of(request)
    except HTTPException as refused:
        return refused.status_code == 401
    return False
