"""What the kernel knows of a container: its processes and use, from its control group's files.

Works without the engine, on cgroup v1 and v2, with either of Docker's two drivers, below our own
parent (see shares.py) and wherever else the engine puts it. Reads; writes nothing.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.tasks_group import PARENT, ROOT, is_v2

NAMES = ("{}", "docker-{}.scope")  # cgroupfs driver, systemd driver
PLACES = (
    f"{PARENT}/{{}}", f"{PARENT}.slice/docker-{{}}.scope",
    "docker/{}", "system.slice/docker-{}.scope",
)  # fmt: skip
ANYWHERE = tuple(f"{above}/{name}" for above in ("*", "*/*") for name in NAMES)
READ_BYTES = 65536
LOOPBACK = "lo"


@dataclass(frozen=True)
class Use:
    """So far, and memory now, of all its processes."""

    cpu_ns: int
    memory_bytes: int
    periods: int = 0  # of its CPU quota …
    throttled_periods: int = 0  # … and those in which it used it up
    block_read_bytes: int = 0
    block_written_bytes: int = 0


@dataclass(frozen=True)
class Group:
    """Where a container's files are; on v2 all in one directory."""

    container: str
    cpu: Path
    cpuacct: Path
    memory: Path
    blkio: Path
    is_v2: bool


def find(container: str, root: Path = ROOT) -> Group | None:
    """None: it is gone, or was never there."""
    if not container:  # its path would be that of all containers
        return None
    if is_v2(root):
        group = _directory(root, container)
        return Group(container, group, group, group, group, is_v2=True) if group else None
    memory = _directory(root / "memory", container)
    if memory is None:
        return None
    below = memory.relative_to(root / "memory")
    cpu, cpuacct, blkio = (root / name / below for name in ("cpu", "cpuacct", "blkio"))
    return Group(container, cpu, cpuacct, memory, blkio, is_v2=False)


def _directory(base: Path, container: str) -> Path | None:
    for place in PLACES:
        if (base / place.format(container)).exists():
            return base / place.format(container)
    for pattern in ANYWHERE:
        for found in base.glob(pattern.format(container)):
            return found
    return None


def processes(container: str) -> list[int]:
    """The pids in the container's group; none where it is gone."""
    group = find(container)
    if group is None:
        return []
    with suppress(OSError, ValueError):
        return [int(line) for line in _text(group.memory / "cgroup.procs").split()]
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
    pid = keeper(container)
    if pid:
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


def keeper(container: str) -> int:
    """The pid of the container's first process; 0: there is none."""
    return next((pid for pid in processes(container) if _is_first(pid)), 0)


def use(group: Group) -> Use | None:
    """None where the group is gone or can't be read."""
    try:
        return _use_v2(group) if group.is_v2 else _use_v1(group)
    except (OSError, ValueError):
        return None


def _use_v1(group: Group) -> Use:
    throttling = _keyed(_optional(group.cpu / "cpu.stat"))
    blocks = _optional(group.blkio / "blkio.throttle.io_service_bytes_recursive")
    words = [line.split() for line in blocks.splitlines()]
    return Use(
        int(_text(group.cpuacct / "cpuacct.usage")),
        int(_text(group.memory / "memory.usage_in_bytes")),
        throttling.get("nr_periods", 0),
        throttling.get("nr_throttled", 0),
        sum(int(w[2]) for w in words if w[1:2] == ["Read"]),
        sum(int(w[2]) for w in words if w[1:2] == ["Write"]),
    )


def _use_v2(group: Group) -> Use:
    cpu = _keyed(_text(group.cpu / "cpu.stat"))
    blocks = _optional(group.blkio / "io.stat").split()
    return Use(
        cpu["usage_usec"] * 1000,
        int(_text(group.memory / "memory.current")),
        cpu.get("nr_periods", 0),
        cpu.get("nr_throttled", 0),
        sum(int(w.removeprefix("rbytes=")) for w in blocks if w.startswith("rbytes=")),
        sum(int(w.removeprefix("wbytes=")) for w in blocks if w.startswith("wbytes=")),
    )


def network(pid: int, proc: Path = Path("/proc")) -> tuple[int, int]:
    """Bytes received and sent in a process's network namespace, without the loopback's."""
    received = sent = 0
    with suppress(OSError, ValueError, IndexError):
        for line in _text(proc / str(pid) / "net" / "dev").splitlines()[2:]:
            name, _, figures = line.partition(":")
            if name.strip() != LOOPBACK:
                received += int(figures.split()[0])
                sent += int(figures.split()[8])
    return received, sent


def _keyed(text: str) -> dict[str, int]:
    """`name value`, a line each."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines())}


def _optional(path: Path) -> str:
    """A controller that is not enabled has no files."""
    with suppress(OSError):
        return _text(path)
    return ""


def _text(path: Path) -> str:
    """Read without Path's costs: it is done for each task each second."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(_parts(descriptor)).decode()
    finally:
        os.close(descriptor)


def _parts(descriptor: int) -> Iterator[bytes]:
    """The kernel gives such a file in parts of a page."""
    while part := os.read(descriptor, READ_BYTES):
        yield part
