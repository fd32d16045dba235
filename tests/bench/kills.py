"""SIGKILLs the executor again and again under a mix of tasks, and checks each of them exactly.

python -m tests.bench.kills DOCKER_HOST [KILLS]: 100 kills take about five minutes. A few of them
are a test (tests/executor/test_kills.py). Every task must have run once, ended as it ends without
kills, with its whole log and output, and nothing of it may be left.
"""

import random
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from procs.executor import cgroup
from shared.taskdir import ARCHIVE, LOG, Report, Spec, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task

AT_ONCE = 6
LONGEST_LIFE_S = 2.0  # from the process's first moment to its kill: all of a start lies within
END_S = 120.0
RAN = "echo ran >> /output/ran; "
COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; sleep 0.02; i=$((i+1)); done; "


@dataclass(frozen=True)
class Kind:
    """A task and how it must end."""

    name: str
    command: str
    phase: str
    code: int
    log: bytes
    timeout_s: float = 300.0
    cancelled: bool = False


def lines(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(count))


KINDS = (
    Kind("short", RAN + "echo short", "succeeded", 0, b"short\n"),
    Kind("code", RAN + COUNT.format(30) + "exit 7", "failed", 7, lines(30)),
    Kind("long", RAN + COUNT.format(150), "succeeded", 0, lines(150)),
    Kind("loud", RAN + "yes | head -c 4000000", "succeeded", 0, b"y\n" * 2_000_000),
    Kind("killed", RAN + "kill -9 $$", "failed", 137, b""),
    Kind("late", RAN + "echo up; exec sleep 300", "timed_out", 143, b"up\n", timeout_s=2.0),
    Kind("cancel", RAN + "echo up; exec sleep 300", "cancelled", 143, b"up\n", cancelled=True),
)


@dataclass
class Figures:
    """What was done, and every fault that was found."""

    kills: int = 0
    tasks: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    phases_at_kill: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Kills:
    """One run."""

    def __init__(self, executor: ExecutorAlone, kills: int, seed: int) -> None:
        self._executor = executor
        self._kills = kills
        self._random = random.Random(seed)
        self._open: dict[TaskKey, Kind] = {}
        self._containers: set[str] = set()
        self.figures = Figures()

    def run(self) -> Figures:
        began_s = time.monotonic()
        while self.figures.kills < self._kills:
            self._fill()
            self._live_and_die()
        self._executor.wait(self._all_ended, "the end of every task", END_S)
        self._look_for_what_is_left()
        self.figures.seconds = time.monotonic() - began_s
        return self.figures

    def _fill(self) -> None:
        while len(self._open) < AT_ONCE:
            kind = KINDS[self.figures.tasks % len(KINDS)]
            self._open[self._executor.assign(self._spec(kind))] = kind
            self.figures.tasks += 1

    def _spec(self, kind: Kind) -> Spec:
        name = f"{kind.name}-{self.figures.tasks}"
        return task("sh", "-c", kind.command, name=name, timeout_s=kind.timeout_s, cpus=0.2)

    def _live_and_die(self) -> None:
        """One life of the executor, of a length that chance decides."""
        self._executor.pid()
        until_s = time.monotonic() + self._random.uniform(0.0, LONGEST_LIFE_S)
        self._executor.wait(partial(self._over, until_s), "the moment of the kill")
        filters = {"label": f"hivemind.home={self._executor.home}"}
        rows = self._executor.docker.containers(all=True, filters=filters)
        self._containers |= {row["Id"] for row in rows}
        held = [self._executor.held(key) for key in self._open]
        self.figures.phases_at_kill.update(str(one.phase) for one in held if one)
        self._executor.kill()
        self.figures.kills += 1

    def _over(self, until_s: float) -> bool:
        self._settle()
        return time.monotonic() >= until_s

    def _all_ended(self) -> bool:
        self._settle()
        return not self._open

    def _settle(self) -> None:
        """Cancel what is to be cancelled; check and release what has ended."""
        for key, kind in list(self._open.items()):
            held = self._executor.held(key)
            if held is None:
                continue
            if held.phase.is_final:
                self._check(key, kind)
                del self._open[key]
                self._executor.forget(key)
            elif kind.cancelled and b"up" in self._output(key):
                self._executor.cancel(key)

    def _output(self, key: TaskKey) -> bytes:
        there = (self._executor.directory(key) / LOG).exists()
        return self._executor.output(key) if there else b""

    def _check(self, key: TaskKey, kind: Kind) -> None:
        report = self._executor.wait_report(key)
        self.figures.ends[f"{report.phase} {report.exit_code}"] += 1
        found = (report.phase, report.exit_code)
        self._expect(key, "end", found, (kind.phase, kind.code), report)
        log = self._output(key)
        self._expect(key, "log", len(log), len(kind.log), report)
        self._expect(key, "log's content", log == kind.log, True, report)
        ran = self._ran(self._executor.directory(key) / ARCHIVE)
        self._expect(key, "runs", ran, b"ran\n", report)

    @staticmethod
    def _ran(archive: Path) -> bytes:
        if not archive.exists():
            return b"no archive"
        with tarfile.open(archive) as opened:
            file = opened.extractfile("ran")
            return file.read() if file else b"no file"

    def _expect(
        self, key: TaskKey, what: str, found: object, wanted: object, report: Report
    ) -> None:
        if found != wanted:
            fault = f"{key.directory}: {what}: {found!r}, not {wanted!r} ({report.error})"
            self.figures.faults.append(fault)

    def _look_for_what_is_left(self) -> None:
        self._executor.wait(lambda: not self._executor.containers(), "no container left")
        left = [one for one in self._containers if cgroup.processes(one)]
        self.figures.faults += [f"container {one[:12]}: processes are left" for one in left]


def main() -> int:
    host, kills = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100
    seed = time.time_ns() % 10**6
    executor = ExecutorAlone(host).start()
    try:
        figures = Kills(executor, kills, seed).run()
    finally:
        executor.stop()
    print(f"seed {seed}: {figures.kills} kills, {figures.tasks} tasks, {figures.seconds:.0f} s")
    print("ends:", dict(figures.ends), "\nat the kill:", dict(figures.phases_at_kill))
    print(*figures.faults or ["no fault"], sep="\n")
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
