"""Waiting in tests: look again until it is so, or fail at a generous deadline."""

import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
LONGEST_S = 20.0


def until(look: Callable[[], T | bool | None], what: str, every_s: float = 0.02) -> T:
    """What `look` returns as soon as it is true."""
    deadline_s = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline_s:
        found = look()
        if found:
            return found  # type: ignore[return-value]
        select.select([], [], [], every_s)
    raise AssertionError(f"not within {LONGEST_S:.0f} s: {what}")


def names(directory: Path) -> list[str]:
    """What lies in `directory`."""
    return sorted(path.name for path in directory.iterdir())


def descriptor_count() -> int:
    """How many descriptors this process has open."""
    return len(names(Path("/proc/self/fd")))
