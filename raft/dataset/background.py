"""Work that goes on while this machine waits for a teacher at an endpoint, and gives way to its replies."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")
_GIVES_WAY = 19  # niceness


class Background(Generic[Result]):
    """What ``work`` gives, computed on a thread of its own, which never keeps the process from ending."""

    def __init__(self, name: str, work: Callable[[], Result]) -> None:
        self._work = work
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """Waits for it. Raises what the work raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._result

    def wait(self, seconds: float | None = None) -> bool:
        """Until the work is done or has failed, or so long; says whether it is over."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own; the threads it starts inherit it
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _GIVES_WAY)
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._failure = error
