"""A home whose path is short enough for unix sockets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.bus_worker import short_home


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as path:
        yield path
