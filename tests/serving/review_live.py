"""A review on a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from raft.dataset.review import open_review
from raft.serving.review import create_review_app


@contextlib.contextmanager
def reviewing(dataset: Path, reviewer: str = "ada", *, port: int = 0, **settings: object) -> Iterator[str]:
    """The address of a review server that runs in a thread until the block ends."""
    import uvicorn

    with open_review(dataset, reviewer) as review, socket.create_server(("127.0.0.1", port)) as listener:
        app = create_review_app(review, **settings)  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
