"""The page, and what those who run a server ask of it."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from raft.prompts import ANSWER_MARK, QUOTE_BEGIN, QUOTE_END
from raft.serving import schema
from raft.serving.keys import LOCAL
from raft.serving.service import service_of

WEB = Path(__file__).parent / "web"
router = APIRouter()


@router.get("/healthz")
async def healthz(request: Request) -> schema.Health:
    """Ready, with the fingerprint of the index that is served."""
    catalog = service_of(request).catalog
    name = catalog.names(LOCAL)[0]
    return schema.Health(status="ready", model=name, index=catalog.engine(name, LOCAL).fingerprint)


@router.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    from jinja2 import Template

    template = Template((WEB / "index.html").read_text(encoding="utf-8"), autoescape=True)
    markers = {"quote_begin": QUOTE_BEGIN, "quote_end": QUOTE_END, "answer_mark": ANSWER_MARK}
    limit = schema.MAX_QUESTION_CHARACTERS
    model = service_of(request).catalog.names(LOCAL)[0]
    return HTMLResponse(template.render(model=model, max_characters=limit, **markers))
