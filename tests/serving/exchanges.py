"""A finished request, as listeners are told of it."""

from __future__ import annotations

from dataclasses import replace

from live import ANSWERED, DOSES, FINGERPRINT, STORAGE, MemoryIndex

from raft.llm.chat import ChatReply
from raft.prompts import parse_answer
from raft.records import Hit
from raft.serving.engine import Asked, Citation, Served
from raft.serving.keys import Caller
from raft.serving.service import Exchange, Timing

QUESTION = "Is the secret dose of Corvalexin 12 mg?"


def exchange(**changes: object) -> Exchange:
    """An answered question about two documents, one of which has two of its passages; any field may be changed."""
    hits = tuple(Hit(chunk, 0.5, rank) for rank, chunk in enumerate([*MemoryIndex((DOSES, STORAGE, DOSES)).chunks], 1))
    quote = "Adults start with 12 mg by mouth."
    start = DOSES.text.index(quote)
    citation = Citation(quote, hits[0], start, start + len(quote), 34, 67)
    reply = ChatReply("served", ANSWERED, prompt_tokens=388, completion_tokens=41, cached_tokens=320)
    served = Served(parse_answer(ANSWERED), hits, (citation,), 1, reply)
    made = Exchange(
        "chatcmpl-4f", "chat", Caller("intranet"), "raft", Asked(QUESTION), hits, served, "answered",
        Timing(0.25, 0.5, 2.75), FINGERPRINT,
    )  # fmt: skip
    return replace(made, **changes)
