"""From settings to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.errors import UsageError
from raft.llm.open import open_chat_model


def test_an_adapter_for_an_endpoint_is_refused_and_not_ignored() -> None:
    with pytest.raises(UsageError, match=r"adapter runs/a cannot be loaded onto the endpoint http://127.0.0.1:9/v1"):
        open_chat_model("m", base_url="http://127.0.0.1:9/v1", adapter=Path("runs/a"))
    assert open_chat_model("m", base_url="http://127.0.0.1:9/v1").name == "m"
