from __future__ import annotations

import pytest
from stand_in import DRUGS, WordIndex, monograph


@pytest.fixture(scope="session")
def index():
    return WordIndex([monograph(n, drug) for n, drug in enumerate(DRUGS)])
