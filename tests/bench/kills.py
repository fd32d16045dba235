"""SIGKILLs a part of the worker again and again under a mix of tasks, and checks each exactly.

python -m tests.bench.kills WHOM [KILLS]: executor, supervisord, engine, or mortal (an engine
without live-restore); 200 kills of the executor take about ten minutes. A few of each are a test
(tests/executor/test_kills.py). Every task must have begun once, ended as it ends without kills,
with its whole log and output, and nothing of it may be left. Only an engine that takes its
containers with it may interrupt them.
"""

import hashlib
import random
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from shared.taskdir import ARCHIVE, LOG, MIB, InputSpec, Report, Spec, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.fakes.witness import SAYS, WORD_BYTES, Witness
from tests.system.engine.private import PrivateEngine
from tests.system.whole import processes_of

AT_ONCE = 6
LONGEST_LIVES_S = (2.0, 8.0)  # from the victim's first moment to its kill: of half of them each
END_S = 180.0
COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; sleep 0.02; i=$((i+1)); done; "
MORTAL = "--no-live-restore"
INPUT, SECRET = b"an input\n", "a secret"
STAYS = {"spec", "report", "log", "run", ARCHIVE}  # of an attempt that was released


@dataclass(frozen=True)
class Kind:
    """A task and how it must end. `files`: what it must leave in its output, by size."""

    name: str
    code: str
    phase: str
    exit_code: int
    log: bytes
    timeout_s: float = 300.0
    cancelled: bool = False
    given: bool = False
    files: tuple[tuple[str, int], ...] = ()


def lines(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(count))


EAT = "exec python3 -c 'x=[]\nwhile 1: x.append(bytearray(1<<20))'"
DEAF = "trap '' TERM; echo up; while :; do sleep 1; done"
SEES = "cat /task/in; printf %s \"$S\" | sha256sum | cut -c1-64"
SEEN = INPUT + hashlib.sha256(SECRET.encode()).hexdigest().encode() + b"\n"
KINDS = (
    Kind("short", "echo short", "succeeded", 0, b"short\n"),
    Kind("code", COUNT.format(30) + "exit 7", "failed", 7, lines(30)),
    Kind("given", SEES, "succeeded", 0, SEEN, given=True),
    Kind("long", COUNT.format(150), "succeeded", 0, lines(150)),
    Kind("loud", "yes | head -c 4000000", "succeeded", 0, b"y\n" * 2_000_000),
    Kind("killed", "kill -9 $$", "failed", 137, b""),
    Kind("late", "echo up; exec sleep 300", "timed_out", 143, b"up\n", timeout_s=2.0),
    Kind("cancel", "echo up; exec sleep 300", "cancelled", 143, b"up\n", cancelled=True),
    Kind("wide", "head -c 3000000 /dev/zero >/output/zeros", "succeeded", 0, b"",
         files=(("zeros", 3_000_000),)),
    Kind("memory", EAT, "out_of_memory", 137, b""),
    Kind("deaf", DEAF, "timed_out", 137, b"up\n", timeout_s=2.0),
)  # fmt: skip


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
    """One run. `kill` kills the victim, and sees to it that it comes back."""

    def __init__(
        self, executor: ExecutorAlone, engine: PrivateEngine, kill: Callable[[], object],
        kills: int, seed: int, *, is_mortal: bool = False,
    ) -> None:  # fmt: skip
        self._executor, self._engine = executor, engine
        self._kill, self._kills = kill, kills
        self._is_mortal = is_mortal
        self._random = random.Random(seed)
        self._witness = Witness(engine.folder / "docker.sock", executor.home)
        self._open: dict[TaskKey, Kind] = {}
        self._released: list[TaskKey] = []
        self._containers: set[str] = set()
        self._before = self._things()
        self.figures = Figures()

    def run(self) -> Figures:
        began_s = time.monotonic()
        while min(self.figures.kills, self.figures.tasks) < self._kills:
            self._fill()
            self._live_and_die()
        self._executor.wait(self._all_ended, "the end of every task", END_S)
        self._look_for_what_is_left()
        self.figures.seconds = time.monotonic() - began_s
        return self.figures

    def one(self, kind: Kind) -> None:
        """One task, and nobody killed but by others."""
        self._assign(kind)
        self._executor.wait(self._all_ended, f"the end of {kind.name}", END_S)

    def _fill(self) -> None:
        while len(self._open) < AT_ONCE:
            self._assign(KINDS[self.figures.tasks % len(KINDS)])

    def _assign(self, kind: Kind) -> None:
        secrets, blobs = ({"S": SECRET}, (INPUT,)) if kind.given else (None, ())
        self._open[self._executor.assign(self._spec(kind), secrets, blobs)] = kind
        self.figures.tasks += 1

    def _spec(self, kind: Kind) -> Spec:
        digest = hashlib.sha256(INPUT).hexdigest()
        inputs = (InputSpec(path="in", size_bytes=len(INPUT), sha256=digest),)
        return task(
            "sh", "-c", SAYS + kind.code, name=f"{kind.name}-{self.figures.tasks}", cpus=0.2,
            memory_bytes=48 * MIB, timeout_s=kind.timeout_s, stop_grace_s=1.0,
            inputs=inputs if kind.given else (),
        )  # fmt: skip

    def _live_and_die(self) -> None:
        """One life of the victim, of a length that chance decides."""
        self._executor.pid()
        longest_s = self._random.choice(LONGEST_LIVES_S)
        until_s = time.monotonic() + self._random.uniform(0.0, longest_s)
        self._executor.wait(partial(self._over, until_s), "the moment of the kill")
        filters = {"label": f"hivemind.home={self._executor.home}"}
        rows = self._executor.docker.containers(all=True, filters=filters)
        self._containers |= {row["Id"] for row in rows}
        held = [self._executor.held(key) for key in self._open]
        self.figures.phases_at_kill.update(str(one.phase) for one in held if one)
        self._kill()
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
            self._witness.look(key)
            held = self._executor.held(key)
            if held is None:
                continue
            if held.phase.is_final:
                self._check(key, kind)
                del self._open[key]
                self._released.append(key)
                self._executor.forget(key)
            elif kind.cancelled and b"up" in self._output(key):
                self._executor.cancel(key)

    def _output(self, key: TaskKey) -> bytes:
        there = (self._executor.directory(key) / LOG).exists()
        return self._executor.output(key) if there else b""

    def _check(self, key: TaskKey, kind: Kind) -> None:
        report = self._executor.wait_report(key)
        self.figures.ends[f"{report.phase} {report.exit_code} {report.cause}"] += 1
        log = self._output(key)
        word, said = log[:WORD_BYTES], log[WORD_BYTES:]
        if self._is_mortal and report.cause == "interrupted":
            self._expect(key, "log", kind.log.startswith(said), True, report)
            self._expect(key, "begun", self._witness.begun(key) <= 1, True, report)
            return
        found = (report.phase, report.exit_code)
        self._expect(key, "end", found, (kind.phase, kind.exit_code), report)
        self._expect(key, "log", len(said), len(kind.log), report)
        self._expect(key, "log's content", said == kind.log, True, report)
        self._expect(key, "begun", self._witness.begun(key), 1, report)
        files = {"ran": word, **{name: bytes(size) for name, size in kind.files}}
        packed = self._packed(self._executor.directory(key) / ARCHIVE)
        self._expect(key, "output", packed == files, True, report)

    @staticmethod
    def _packed(archive: Path) -> dict[str, bytes]:
        if not archive.exists():
            return {}
        with tarfile.open(archive) as opened:
            files = {one.name: opened.extractfile(one) for one in opened}
            return {name: file.read() if file else b"" for name, file in files.items()}

    def _expect(
        self, key: TaskKey, what: str, found: object, wanted: object, report: Report
    ) -> None:
        if found != wanted:
            fault = f"{key.directory}: {what}: {found!r}, not {wanted!r} ({report.error})"
            self.figures.faults.append(fault)

    # -------------------------------------------------------------- what is left

    def _things(self) -> dict[str, int]:
        """How many of each the engine has; the pool of task networks is the worker's own."""
        docker, mounts = self._executor.docker, Path("/proc/self/mountinfo").read_text()
        return {
            "containers": len(docker.containers(all=True)),
            "networks": len(docker.networks()) - len(self._executor.networks()),
            "volumes": len(docker.volumes()["Volumes"] or ()),
            "mounts": mounts.count(f" {self._engine.folder}/data/"),
        }

    def _look_for_what_is_left(self) -> None:
        wait = self._executor.wait
        wait(lambda: not (state := self._executor.state()) or not state.tasks, "all released")
        wait(lambda: not self._executor.containers(), "no container left")
        wait(lambda: not processes_of(self._containers), "no process left")
        faults = self.figures.faults
        if (after := self._things()) != self._before:
            faults.append(f"the engine has {after}, had {self._before}")
        for key in self._released:
            left = {path.name for path in self._executor.directory(key).iterdir()} - STAYS
            faults += [f"{key.directory}: {name} is left" for name in left]
        for folder in ("lib", "debug"):
            hidden = (self._executor.home / folder).rglob(".*")
            faults += [f"{path} is left" for path in hidden]


# ------------------------------------------------------------------ whom to kill


def victim(
    whom: str, executor: ExecutorAlone, engine: PrivateEngine
) -> Callable[[], object]:
    """What kills it, and brings it back where nobody else does."""

    def supervisord() -> None:
        executor.kill_supervisord()
        executor.start()

    def the_engine(*options: str) -> None:
        engine.kill()
        engine.start(*options)

    killers: dict[str, Callable[[], object]] = {
        "executor": executor.kill,
        "supervisord": supervisord,
        "engine": the_engine,
        "mortal": partial(the_engine, MORTAL),
    }
    return killers[whom]


def run(whom: str, engine: PrivateEngine, kills: int, seed: int) -> Figures:
    executor = ExecutorAlone(engine.host).start()
    try:
        kill = victim(whom, executor, engine)
        return Kills(executor, engine, kill, kills, seed, is_mortal=whom == "mortal").run()
    finally:
        executor.stop()


def main() -> int:
    whom, kills = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100
    seed = time.time_ns() % 10**6
    engine = PrivateEngine(Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp")))
    try:
        engine.start(*[MORTAL] * (whom == "mortal"))
        assert engine.task_image
        figures = run(whom, engine, kills, seed)
    finally:
        engine.stop("--purge")
    print(f"{whom}, seed {seed}: {figures.kills} kills, {figures.tasks} tasks, ", end="")
    print(f"{figures.seconds:.0f} s\nends:", dict(figures.ends))
    print("at the kill:", dict(figures.phases_at_kill))
    print(*figures.faults or ["no fault"], sep="\n")
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
