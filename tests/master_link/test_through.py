"""Memory has a bound whatever goes through; 10 GB: tests/bench/through.py."""

import asyncio
from pathlib import Path

import pytest

from tests.bench.through import MOST_MB, run


@pytest.mark.system
def test_what_goes_through_is_not_held_in_memory(tmp_path: Path) -> None:
    figures = asyncio.run(run(300_000_000, 6, tmp_path / "master"))
    assert figures.most_mb <= MOST_MB
