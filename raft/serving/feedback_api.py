"""/v1/feedback: what people say of the answers that they were given.

{"id": "chatcmpl-4f", "rating": "down", "correction": "5 mg in children"}  ->  201 {"id": "feedback-6d1f", ...}
"""

from __future__ import annotations

import logging
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from raft.serving.feedback import NotKept, Opinion
from raft.serving.guard import GuardedRoute
from raft.serving.http_errors import RETRY_AFTER_SECONDS, Refused
from raft.serving.openapi import errors
from raft.serving.service import caller_of, service_of

MOST_CHARACTERS = 4000  # of a correction or a comment
log = logging.getLogger("raft.serving")
router = APIRouter(prefix="/v1", route_class=GuardedRoute)


class FeedbackRequest(BaseModel):
    """``id`` is that of the completion or response; ``correction`` is the answer as it should have been."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)
    id: str = Field(min_length=1, max_length=200)
    rating: Literal["up", "down"]
    correction: str | None = Field(None, max_length=MOST_CHARACTERS)
    comment: str | None = Field(None, max_length=MOST_CHARACTERS)


class FeedbackReceipt(BaseModel):
    """Sent once the row lies on the disk. Rating the same answer again gives the same ``id``."""

    id: str
    object: Literal["feedback"]
    answer_id: str


@router.post("/feedback", status_code=201, responses=errors(404))
async def feedback(body: FeedbackRequest, request: Request) -> FeedbackReceipt:
    """Keep a rating, and a correction if there is one, of an answer that the caller was given."""
    kept = service_of(request).feedback
    if kept is None:
        raise Refused(404, "this server keeps no feedback", code="feedback_off")
    given = kept.recent.find(body.id, caller_of(request))
    if given is None:
        message = f"no answer {body.id!r} can be rated: it is not known, or no longer, or was given to somebody else"
        raise Refused(404, message, param="id", code="answer_not_found")
    try:
        row = await kept.store.keep(given, Opinion(body.rating, body.correction or None, body.comment or None))
    except NotKept as error:
        log.error("%s", error)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise Refused(503, "the feedback could not be written", kind="server_error", headers=headers) from None
    return FeedbackReceipt(id=row, object="feedback", answer_id=given.id)
