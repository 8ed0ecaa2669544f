"""Trainings in tests take seconds, of which the garbage collector would have most."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Every training collects garbage a few times (accelerate does), and each time goes through all that the libraries
    hold, none of which is garbage."""
    with contextlib.suppress(ImportError):  # TRL is an extra
        import raft.training.preference_trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
