"""/openapi.json: what the routes take and give, errors too."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi

from raft.serving.guard import GuardedRoute
from raft.serving.schema import ErrorResponse

router = APIRouter(route_class=GuardedRoute)
_DESCRIPTIONS = {
    400: "The request is not what the route takes, or the model's window does not hold even one passage.",
    401: "No valid key was given.",
    403: "A server without keys was reached by another name than localhost.",
    404: "It does not exist, or not for this key.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    429: "As many requests wait as may wait, or this key sends too many; Retry-After says when to come again.",
    500: "A mistake in the server.",
    502: "The model, or what it runs on, could not answer.",
    503: "The server is stopping, or cannot do what the route needs.",
    504: "The answer took too long.",
}
_OF_ANY_GUARDED_ROUTE = (401, 403, 429, 500, 503)
_OF_ANY_BODY = (400, 408, 413)
GUARDED = "/v1/"  # where every route is a GuardedRoute


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside what it is there for; what any route may is added by ``describe``."""
    return {status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]} for status in statuses}


def streamed(data: str) -> dict[int | str, dict[str, Any]]:
    """That a route's success may be server-sent events, each of the form that is described; ``data`` says what it
    holds."""
    texts = {"event": {"type": "string"}, "data": {"type": "string", "description": data}}
    event = {"type": "object", "properties": texts, "required": ["data"]}
    return {200: {"content": {"text/event-stream": {"schema": event}}}}


@router.get("/openapi.json", include_in_schema=False)
async def openapi_json(request: Request) -> dict[str, Any]:
    """The description of this server."""
    return request.app.openapi()  # type: ignore[no-any-return]


def describe(app: FastAPI) -> None:
    """Make ``app`` describe itself as it behaves: a mistake in a request is 400, and a key may be needed."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version="1", routes=app.routes)
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of a mistake, which is never sent
        schemas.pop(name, None)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            statuses = (*_OF_ANY_GUARDED_ROUTE, *(_OF_ANY_BODY if "requestBody" in operation else ()))
            operation["responses"].pop("422", None)
            if path.startswith(GUARDED):
                operation["security"] = [{"key": []}, {}]
                for status in statuses:
                    said = {"description": _DESCRIPTIONS[status], "content": error}
                    operation["responses"].setdefault(str(status), said)
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found
