"""Who asks: the callers that a server knows, and what each may see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. ``name`` is that of the key, for logs, limits and the audit trail; ``labels`` are the access
    labels that it holds, None for all that the server itself was given."""

    name: str
    labels: frozenset[str] | None = None


LOCAL = Caller("local")
"""Whoever reaches a server without keys, which listens to its own machine alone."""
