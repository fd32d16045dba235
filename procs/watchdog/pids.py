"""Processes as the kernel knows them: pidfds that become readable at a death, and ages."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

START_FIELD = 19  # of /proc/<pid>/stat, counted after the name's closing bracket
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot: with its pid, a name for its life."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[START_FIELD])


def born_s(pid: int) -> float:
    """When it began, on CLOCK_BOOTTIME as the kernel counts it."""
    return start_ticks(pid) / TICKS_PER_S


def since_s(born_s: float) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - born_s


@dataclass(frozen=True)
class _Held:
    pid: int
    descriptor: int
    born_s: float


class Pids:
    """A pidfd of each program's process."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def hold(self, pids: Mapping[str, int]) -> None:
        """Hold exactly these (name → pid)."""
        for name in [n for n, held in self._held.items() if pids.get(n) != held.pid]:
            os.close(self._held.pop(name).descriptor)
        for name, pid in pids.items():
            if name not in self._held:
                self._open(name, pid)

    def _open(self, name: str, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # died since; supervisord will say so
        try:
            self._held[name] = _Held(pid, descriptor, born_s(pid))
        except OSError:
            os.close(descriptor)

    def descriptors(self) -> tuple[int, ...]:
        return tuple(held.descriptor for held in self._held.values())

    def take_dead(self, ready: set[int]) -> dict[str, float]:
        """Let go of those whose pidfd is in `ready`: name → seconds that it lived."""
        dead = {n: h for n, h in self._held.items() if h.descriptor in ready}
        for name in dead:
            os.close(self._held.pop(name).descriptor)
        return {name: since_s(held.born_s) for name, held in dead.items()}

    def close(self) -> None:
        self.hold({})
