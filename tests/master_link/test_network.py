"""A worker in a network of its own that is slow, or does not know its master's name; each other
fault, and longer, in tests/bench/faults.py."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.faults import FAULTS, suffer
from tests.fakes.line import Load


@pytest.mark.system
def test_heartbeats_pass_a_slow_line_beside_uploads(tmp_path: Path) -> None:
    """Behind them they would come so late that the link was given up."""
    fault = replace(FAULTS["2 Mbit/s"], load=Load(10_000, 400_000))
    figures = asyncio.run(suffer(fault, tmp_path / "master"))
    assert figures.faults == []
    assert figures.tries == 0


@pytest.mark.system
def test_a_name_that_is_known_later_is_found(tmp_path: Path) -> None:
    fault = replace(FAULTS["no name"], lasts_s=4.0)
    figures = asyncio.run(suffer(fault, tmp_path / "master"))
    assert figures.faults == []
    assert figures.tries >= 1
