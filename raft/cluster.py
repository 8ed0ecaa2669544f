"""Ray: several processes of this machine, or a cluster, for what one process does too slowly (raft-tune[ray])."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raft.errors import EndpointError, ModelError


@contextmanager
def ray_session(workers: int, address: str | None, setting: str) -> Iterator[Any]:
    """Ray, connected; what is started here is stopped here. ``setting`` is the recipe's part that asked for it.

    Raises ModelError where it is not installed, EndpointError where the cluster cannot be reached.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise ModelError(f"{setting}.workers needs Ray, which is not installed", "pip install 'raft-tune[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is raised here too
    import ray
    import ray.data

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EndpointError(
            f"Ray at {address or 'this machine'} cannot be reached ({first})", f"Check {setting}.ray_address"
        ) from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def one_line_failures(ray: Any, doing: str, setting: str) -> Iterator[None]:
    """Turns what a worker raised while ``doing`` its work into a ModelError of one line."""
    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"{doing} through Ray failed ({lines[-1][:300] if lines else type(error).__name__})",
            f"Set {setting}.workers to 0 to do it in this process",
        ) from None
