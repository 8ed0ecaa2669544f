from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import scripted, serving
from pages import CHROMIUM, QUIET, Watched


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server whose model always gives the same well-supported answer."""
    with serving(scripted()) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    if not Path(CHROMIUM).exists():
        if os.environ.get("RAFT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"no browser at {CHROMIUM}, and RAFT_REQUIRE_BROWSER=1 asks for one")
        pytest.skip(f"no browser at {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens the page at an address; closed at the end of the test."""
    opened: list[Watched] = []

    def open_it(url: str, **settings) -> Watched:
        opened.append(Watched(browser, url, **settings))
        return opened[-1]

    yield open_it
    for watched in opened:
        watched.page.close()
