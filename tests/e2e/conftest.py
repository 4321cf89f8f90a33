"""The system fixture: a server of the test's own, and whatever processes it starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.system import System
from tests.server import Server


@pytest.fixture
def system(own_server: Server, tmp_path: Path) -> Iterator[System]:
    """An empty system; what the test started is ended after it."""
    started = System(own_server, tmp_path)
    yield started
    started.stop()
