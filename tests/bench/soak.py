"""Many quick tasks one after the other through one executor: what of it grows?

python -m tests.bench.soak [TASKS]: 2,000 take about seven minutes. Prints memory, threads,
descriptors and the size of what it keeps each tenth of the way, and fails when from the second
tenth on one of them grows by more than the tasks can explain. Tasks are released as they end, and
their directories taken away as master_link does after a day.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.files import remove_tree
from shared.taskdir import MIB, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

AT_ONCE = 4
MOST_GROWTH_KIB = 4096  # of memory, from the second tenth to the last: the allocator's own
MOST_ROW_BYTES = 2048  # of the history, for each task: it is kept for a month
LONGEST_S = 3600.0
LEAST_TASKS = 200  # fewer tell nothing: the first fill caches


@dataclass(frozen=True)
class Size:
    """Of the executor's process, and of what it keeps."""

    tasks: int
    memory_kib: int
    threads: int
    descriptors: int
    history_bytes: int
    files: int  # in the home, but for the log

    def __str__(self) -> str:
        return (
            f"{self.tasks:5} tasks: {self.memory_kib / 1024:6.1f} MiB, {self.threads} threads,"
            f" {self.descriptors} descriptors, history {self.history_bytes // 1024} KiB,"
            f" {self.files} files"
        )


def measure(executor: ExecutorAlone, tasks: int) -> Size:
    process = Path(f"/proc/{executor.pid()}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    history = (executor.home / "lib").glob("executor.db*")
    return Size(
        tasks=tasks,
        memory_kib=int(status["VmRSS"].split()[0]),
        threads=int(status["Threads"]),
        descriptors=len(list((process / "fd").iterdir())),
        history_bytes=sum(path.stat().st_size for path in history),
        files=sum(1 for path in executor.home.rglob("*") if "log" not in path.parts),
    )


class Soak:
    """Keeps a few tasks going until enough have ended."""

    def __init__(self, executor: ExecutorAlone, tasks: int) -> None:
        self._executor, self._tasks = executor, tasks
        self._open: set[TaskKey] = set()
        self._begun = self._ended = 0

    def run(self) -> Iterator[Size]:
        for tenth in range(1, 11):
            goal = self._tasks * tenth // 10
            self._executor.wait(partial(self._has_reached, goal), f"{goal} tasks", LONGEST_S)
            yield measure(self._executor, self._ended)

    def _has_reached(self, goal: int) -> bool:
        while self._begun < goal and len(self._open) < AT_ONCE:
            self._begun += 1
            spec = task("true", name=f"soak-{self._begun}", cpus=0.1, memory_bytes=16 * MIB)
            self._open.add(self._executor.assign(spec))
        for key in list(self._open):
            self._settle(key)
        return self._ended >= goal

    def _settle(self, key: TaskKey) -> None:
        held = self._executor.held(key)
        if held is not None and held.phase.is_final and key in self._executor.wanted:
            assert held.phase == "succeeded", held
            self._executor.forget(key)
        elif held is None and key not in self._executor.wanted and self._executor.state():
            self._open.discard(key)
            self._ended += 1
            remove_tree(self._executor.directory(key))


def faults(first: Size, last: Size) -> list[str]:
    """What grew by more than it may."""
    tasks = last.tasks - first.tasks
    grown = {
        "memory": last.memory_kib - first.memory_kib > MOST_GROWTH_KIB,
        "threads": last.threads > first.threads + 1,
        "descriptors": last.descriptors > first.descriptors + 2,
        "history": last.history_bytes - first.history_bytes > MIB + tasks * MOST_ROW_BYTES,
        "files": last.files > first.files + 2,
    }
    return [f"{name} grew" for name, is_grown in grown.items() if is_grown]


def main() -> int:
    tasks = max(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, LEAST_TASKS)
    engine = PrivateEngine(Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp")))
    executor = None
    try:
        engine.start()
        assert engine.task_image
        executor = ExecutorAlone(engine.host).start()
        sizes = []
        for size in Soak(executor, tasks).run():
            print(size, flush=True)
            sizes.append(size)
    finally:
        if executor is not None:
            executor.stop()
        engine.stop("--purge")
    found = faults(sizes[1], sizes[-1])
    print(*found or ["nothing grew"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
