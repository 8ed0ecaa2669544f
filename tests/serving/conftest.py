from __future__ import annotations

from collections.abc import Iterator

import pytest
from live import scripted, serving


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server whose model always gives the same well-supported answer."""
    with serving(scripted()) as url:
        yield url
