"""The control group above all tasks' groups: its CPU weight follows what the owner needs, and it
never has all the processes that the machine can have.

One for all workers of an engine, which so agree: they see the same machine. The engine makes
it with the first container; only these two are written here. The weight is shares.py's.
"""

import logging
import os
from pathlib import Path

from procs.executor.cgroup import PARENT, ROOT
from procs.executor.shares import NORMAL_PCT, Weight, next_weight, owner_cpu_pct
from shared.messages import HostLoad

log = logging.getLogger("executor")

NORMAL_SHARES, LEAST_SHARES = 1024, 2  # v1
NORMAL_WEIGHT, LEAST_WEIGHT = 100, 1  # v2
CPUS = os.cpu_count() or 1
KERNEL = Path("/proc/sys/kernel")
LIMITS = ("pid_max", "threads-max")  # of the whole machine
TASKS_PART = 0.5  # eight tasks with all that one may ask for would take the usual 32768


def most_processes() -> int:
    """Of all tasks together: without a process left the owner could not even log in."""
    return int(min(int((KERNEL / name).read_text()) for name in LIMITS) * TASKS_PART)


class TasksGroup:
    """Belongs to the loop's thread; its files answer from memory."""

    def __init__(self, root: Path = ROOT) -> None:
        self._is_v2 = (root / "cgroup.controllers").exists()
        places = (PARENT, f"{PARENT}.slice")  # of either driver
        self._weights = [
            root / place / "cpu.weight" if self._is_v2 else root / "cpu" / place / "cpu.shares"
            for place in places
        ]
        self._uses = [
            root / place / "cpu.stat" if self._is_v2 else root / "cpuacct" / place / "cpuacct.usage"
            for place in places
        ]
        self._process_limits = [
            (root if self._is_v2 else root / "pids") / place / "pids.max" for place in places
        ]
        self._most_processes = most_processes()
        self._normal = NORMAL_WEIGHT if self._is_v2 else NORMAL_SHARES
        self._least = LEAST_WEIGHT if self._is_v2 else LEAST_SHARES
        self._weight = Weight(self._read() or NORMAL_PCT)
        self._last: tuple[float, int] | None = None  # host.load's time, CPU time of all tasks then
        self._is_refused = self._is_unlimited = False
        self.pct: float | None = None  # as the file has it; None: there is none, or not for us

    def follow(self, host: HostLoad | None, *, is_used: bool) -> None:
        """At each host.load; without one, the weight stays. Without tasks it is the normal one."""
        if not is_used:
            self._last = None
            if self._weight.pct != NORMAL_PCT:
                self._weight = Weight()
                self._write()
            self.pct = None
        elif host is not None and (self._last is None or host.at_s > self._last[0]):
            self._step(host)

    def _step(self, host: HostLoad) -> None:
        self._limit_processes()
        before, cpu_ns = self._last, self._cpu_ns()
        self._last = host.at_s, cpu_ns
        if before is not None:
            used_s = (cpu_ns - before[1]) / 1e9
            tasks_pct = 100 * used_s / (host.at_s - before[0]) / CPUS
            owner_pct = owner_cpu_pct(host.cpu_pct, tasks_pct)
            self._weight = next_weight(
                self._weight, owner_pct, host.pressure_cpu_pct, host.at_s
            )
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

    def _cpu_ns(self) -> int:
        total = 0
        for path in self._uses:
            try:
                text = path.read_text()
                used = text.split("usage_usec", 1)[1].split()[0] + "000" if self._is_v2 else text
                total += int(used)
            except (OSError, ValueError, IndexError):
                continue  # not of this driver, or no task has run yet
        return total

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
