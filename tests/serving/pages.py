"""The page of raft serve in a headless Chromium, and what it says and asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live import scripted, serving

from raft.llm.chat import ChatModel
from raft.serving.feedback import FeedbackStore
from raft.serving.recent import Feedback

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip
PHONE = {"viewport": {"width": 360, "height": 740}}
REFUSED = "None of the documents holds the answer.\n<ANSWER>: not in the documents"


class Watched:
    """A page whose console errors and foreign requests are collected, and what it asks for."""

    def __init__(self, browser, url: str, **settings) -> None:
        self.page = browser.new_page(**settings)
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(url) else self.complaints.append(r.url))
        self.page.on("request", lambda r: self.bodies.append(json.loads(r.post_data)) if r.post_data else None)
        self.page.goto(url)

    def ask(self, question: str = "What is the first dose?") -> None:
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_label("Question").press("Enter")

    def done(self, turns: int = 1) -> None:
        self.page.wait_for_function("n => document.querySelectorAll('.turn[aria-busy=false]').length === n", arg=turns)

    def text(self, selector: str) -> str:
        """What the last turn says there."""
        return str(self.page.locator(".turn").last.locator(selector).inner_text())

    def status(self) -> str:
        return str(self.page.text_content("#status"))


@contextmanager
def keeping(folder: Path, model: ChatModel | None = None, **settings: Any) -> Iterator[tuple[str, Path]]:
    """A server that keeps feedback, and the file in which it does."""
    store = FeedbackStore(folder / "feedback.sqlite")
    with serving(model or scripted(), feedback=Feedback(store), **settings) as url:
        yield url, folder / "feedback.sqlite"
    store.close()
