"""What the kernel knows of a container: its processes and use, from its control group's files.

Works without the engine, on cgroup v1 and v2, with either of Docker's two drivers.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PLACES = ("docker/{}", "system.slice/docker-{}.scope")  # cgroupfs driver, systemd driver


@dataclass(frozen=True)
class Use:
    """CPU time so far and memory now, of all its processes."""

    cpu_ns: int
    memory_bytes: int


def _file(container: str, controller: str, name: str) -> Path | None:
    for place in PLACES:
        for base in (ROOT / controller, ROOT):
            path = base / place.format(container) / name
            if path.exists():
                return path
    return None


def processes(container: str) -> list[int]:
    """The pids in the container's group; none where it is gone."""
    if not container:  # its path would be that of all containers
        return []
    path = _file(container, "memory", "cgroup.procs")
    if path is None:
        return []
    with suppress(OSError, ValueError):
        return [int(line) for line in path.read_text().split()]
    return []


def kill(container: str) -> None:
    """SIGKILL every process of the group: the engine may have lost it and can't."""
    for pid in processes(container):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def number(name: str) -> int:
    """The number of a signal as an image names it: SIGTERM, TERM, 15, SIGRTMIN+3."""
    plain = name.upper().removeprefix("SIG")
    found = int(getattr(signal, f"SIG{plain}", signal.SIGTERM))
    with suppress(ValueError):
        found = int(plain)
    with suppress(ValueError):
        if plain.startswith("RTMIN+"):
            found = int(signal.SIGRTMIN) + int(plain.removeprefix("RTMIN+"))
    return found if 0 < found <= signal.SIGRTMAX else int(signal.SIGTERM)


def signal_keeper(container: str, which: int) -> bool:
    """Signal the container's first process; False when there is none."""
    for pid in processes(container):
        if _is_first(pid):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, which)
                return True
    return False


def _is_first(pid: int) -> bool:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1] == "1"
    return False


def use(container: str) -> Use | None:
    """None where the group is gone or can't be read."""
    with suppress(OSError, ValueError):
        v1 = _file(container, "cpuacct", "cpuacct.usage")
        memory = _file(container, "memory", "memory.usage_in_bytes")
        if v1 and memory:
            return Use(int(v1.read_text()), int(memory.read_text()))
        v2, memory = _file(container, "", "cpu.stat"), _file(container, "", "memory.current")
        if v2 and memory:
            cpu_us = int(v2.read_text().split("usage_usec", 1)[1].split()[0])
            return Use(cpu_us * 1000, int(memory.read_text()))
    return None
