"""Endpoints for the tests of this room, stopped after each test."""

from __future__ import annotations

import threading

import pytest

from tests.llm.stub import Stub


@pytest.fixture
def serve():
    stubs = []

    def start(behave):
        stub = Stub(behave)
        threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
        stubs.append(stub)
        return stub

    yield start
    for stub in stubs:
        stub.shutdown()
        stub.server_close()
