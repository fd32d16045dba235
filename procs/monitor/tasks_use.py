"""What all tasks use together, from the files of the control group above theirs; v1 and v2.

What the engine does for them, such as a pull, is not in it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from shared.tasks_group import ROOT, files, is_v2

ANONYMOUS = {True: ("anon", "shmem"), False: ("total_rss", "total_shmem")}  # by is_v2: what can't
# be dropped, as the machine's own figure counts it


class TasksUse:
    """Knows where the files are; before the first task there are none."""

    def __init__(self, root: Path = ROOT) -> None:
        self._is_v2 = is_v2(root)
        self._cpu = files("cpuacct", "cpu.stat" if self._is_v2 else "cpuacct.usage", root)
        self._memory = files("memory", "memory.stat", root)

    def read(self) -> tuple[float | None, int | None]:
        """Seconds of CPU so far, bytes of memory now; None: they can't be read."""
        memory_bytes = _sum(self._memory, self._memory_bytes)
        return _sum(self._cpu, self._cpu_s), None if memory_bytes is None else int(memory_bytes)

    def _cpu_s(self, text: str) -> float:
        return _keyed(text)["usage_usec"] / 1e6 if self._is_v2 else int(text) / 1e9

    def _memory_bytes(self, text: str) -> int:
        found = _keyed(text)
        return sum(found[name] for name in ANONYMOUS[self._is_v2])


def _sum(paths: Iterable[Path], parse: Callable[[str], float]) -> float | None:
    """Of those that are there."""
    total = 0.0
    for path in paths:
        try:
            total += parse(path.read_text())
        except FileNotFoundError:
            continue  # not of this driver, or no task has run yet
        except (OSError, ValueError, KeyError):
            return None
    return total


def _keyed(text: str) -> dict[str, int]:
    """`name value`, a line each."""
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines())}
