"""The control group above all tasks' groups: its CPU weight follows what the owner needs, and it
never has all the processes that the machine can have.

One for all workers of an engine, which so agree: they see the same machine. The engine makes
it with the first container; only these two are written here. The weight is shares.py's.
"""

import logging
from pathlib import Path

from procs.executor.shares import NORMAL_PCT, Weight, next_weight, owner_cpu_pct
from shared.messages import HostLoad
from shared.tasks_group import ROOT, files, is_v2

log = logging.getLogger("executor")

NORMAL_SHARES, LEAST_SHARES = 1024, 2  # v1
NORMAL_WEIGHT, LEAST_WEIGHT = 100, 1  # v2
KERNEL = Path("/proc/sys/kernel")
LIMITS = ("pid_max", "threads-max")  # of the whole machine
TASKS_PART = 0.5  # eight tasks with all that one may ask for would take the usual 32768


def most_processes() -> int:
    """Of all tasks together: without a process left the owner could not even log in."""
    return int(min(int((KERNEL / name).read_text()) for name in LIMITS) * TASKS_PART)


class TasksGroup:
    """Belongs to the loop's thread; its files answer from memory."""

    def __init__(self, root: Path = ROOT) -> None:
        v2 = is_v2(root)
        self._weights = files("cpu", "cpu.weight" if v2 else "cpu.shares", root)
        self._process_limits = files("pids", "pids.max", root)
        self._most_processes = most_processes()
        self._normal = NORMAL_WEIGHT if v2 else NORMAL_SHARES
        self._least = LEAST_WEIGHT if v2 else LEAST_SHARES
        self._weight = Weight(self._read() or NORMAL_PCT)
        self._followed_s = -1.0  # the newest host.load's time
        self._is_refused = self._is_unlimited = False
        self.pct: float | None = None  # as the file has it; None: there is none, or not for us

    def follow(self, host: HostLoad | None, *, is_used: bool) -> None:
        """At each host.load; without one, the weight stays. Without tasks it is the normal one."""
        if not is_used:
            if self._weight.pct != NORMAL_PCT:
                self._weight = Weight()
                self._write()
            self.pct = None
        elif host is not None and host.at_s > self._followed_s:
            self._followed_s = host.at_s
            self._step(host)

    def _step(self, host: HostLoad) -> None:
        self._limit_processes()
        if host.tasks_cpu_pct is not None:
            owner_pct = owner_cpu_pct(host.cpu_pct, host.tasks_cpu_pct)
            self._weight = next_weight(self._weight, owner_pct, host.pressure_cpu_pct, host.at_s)
        self._write()

    def _limit_processes(self) -> None:
        """A lower limit is the owner's, and stays."""
        for path in self._process_limits:
            try:
                found = path.read_text().strip()
                if found == "max" or int(found) > self._most_processes:
                    path.write_text(str(self._most_processes))
            except FileNotFoundError:
                continue  # not of this driver, or no task has run yet
            except (OSError, ValueError) as err:
                if not self._is_unlimited:
                    log.warning("tasks' processes are not limited together: %s", err)
                self._is_unlimited = True

    def _read(self) -> float | None:
        for path in self._weights:
            try:
                return round(100 * int(path.read_text()) / self._normal, 1)
            except (OSError, ValueError):
                continue
        return None

    def _write(self) -> None:
        """What stands there may be another worker's: written only where it differs."""
        wanted = max(round(self._normal * self._weight.pct / 100), self._least)
        for path in self._weights:
            try:
                if path.exists() and int(path.read_text()) != wanted:
                    path.write_text(str(wanted))
            except (OSError, ValueError) as err:
                if not self._is_refused:
                    log.warning("tasks' CPU weight can't be set, so it stays as it is: %s", err)
                self._is_refused = True
        self.pct = self._read()
