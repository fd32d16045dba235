"""SIGKILLs the executor at each step of a task's life, one after the other: before the first time
that it makes a folder, before the second, and so on, with every call by which it changes a file.

python -m tests.bench.kill_points [CALL…]: about a hundred steps, ten minutes; a few are a test
(tests/executor/test_kills.py). strace does the killing, at the n-th such call of any thread.
Whatever the step, the task begins once and ends as it ends without a kill.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.kills import KINDS, Kills, Kind
from tests.fakes.executor_alone import ExecutorAlone
from tests.system.engine.private import PrivateEngine

CALLS = (
    "mkdir", "rmdir", "chmod", "fchmod", "chown", "fchown", "link", "unlink", "unlinkat", "rename",
    "fallocate", "fsync", "fdatasync", "pwrite64",
)  # fmt: skip
SWEPT = tuple(kind for kind in KINDS if kind.name in ("given", "cancel"))


@dataclass
class Sweep:
    """Kills one executor at steps of tasks' lives."""

    executor: ExecutorAlone
    tasks: Kills
    points: list[str] = field(default_factory=list)

    def all_of(self, call: str) -> None:
        """At the first such call, the second, … until the task gets through."""
        for kind in SWEPT:
            number = 1
            while self.at(kind, call, number):
                number += 1

    def at(self, kind: Kind, call: str, number: int) -> bool:
        """Was it killed there?"""
        with killer(self.executor, call, number) as trace:
            self.tasks.one(kind)
        point = [line.split(" ", 1)[1] for line in trace if line.endswith("= ?")]
        self.points += [f"{kind.name}, {call} {number}: {line.strip()}" for line in point[-1:]]
        return bool(point)


@contextmanager
def killer(executor: ExecutorAlone, call: str, number: int) -> Iterator[list[str]]:
    """strace on one life of the executor; the lines that it wrote, when it is over."""
    pid = executor.pid()
    executor.wait(executor.available, "the executor at work")
    folder = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    inject = f"inject={call}:signal=KILL:when={number}"
    strace = subprocess.Popen(
        ["strace", "-fqq", "-o", str(folder / "trace"), "-p", str(pid),
         "-e", f"trace={call}", "-e", inject],
    )  # fmt: skip
    lines: list[str] = []
    try:
        executor.wait(lambda: _is_traced(pid), "strace on all threads")
        yield lines
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait()
        lines += (folder / "trace").read_text().splitlines()
        shutil.rmtree(folder)


def _is_traced(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return all("TracerPid:\t0\n" not in status.read_text() for status in tasks)


@contextmanager
def swept(engine: PrivateEngine) -> Iterator[Sweep]:
    executor = ExecutorAlone(engine.host).start()
    try:
        yield Sweep(executor, Kills(executor, engine, executor.kill, 0, 0))
    finally:
        executor.stop()


def main() -> int:
    engine = PrivateEngine(Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp")))
    try:
        engine.start()
        assert engine.task_image
        with swept(engine) as sweep:
            for call in sys.argv[1:] or CALLS:
                sweep.all_of(call)
            faults = sweep.tasks.run().faults
    finally:
        engine.stop("--purge")
    print(f"killed at {len(sweep.points)} steps", *sweep.points, sep="\n  ")
    print(*faults or ["no fault"], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
