"""Runs the attacks and the bombs as tasks of a real executor, and looks at them from outside."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from shared.messages import TaskState
from shared.taskdir import InputSpec, Report, TaskKey
from tests.executor import attacks
from tests.executor.attacks import ATTACKS, Targets
from tests.executor.bombs import BOMBS, LOG_LIMIT_BYTES, SHORT
from tests.fakes.executor_alone import ExecutorAlone, task

SECRET = "known-to-the-host-alone"
MARK = f"HOSTILE_TASK_{os.getpid()}"  # in the environment of every process of theirs
KERNEL = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/domainname",
    "kernel/pid_max", "kernel/random/boot_id", "vm/overcommit_memory", "fs/file-max",
    "net/ipv4/ip_forward",
)  # fmt: skip
IMPORTS = "import ctypes, itertools, os, signal, sys, time\n"
IPC_CREATE, IPC_REMOVE = 0o1000, 0


@dataclass(frozen=True)
class Row:
    """How one attack or bomb ended. `blocked`: as seen from inside."""

    name: str
    wall: str
    what: str
    outcome: str
    blocked: bool


def own(name: str) -> str:
    """An engine that is shared knows containers by the names of their tasks."""
    return f"{name}-{os.getpid()}"


def table(rows: list[Row]) -> str:
    lines = [f"{'attack':20} {'stopped?':9} outcome"]
    for row in rows:
        stopped = "stopped" if row.blocked else "SUCCEEDED"
        lines.append(f"{row.name:20} {stopped:9} {row.what}: {row.outcome[:80]}")
    return "\n".join(lines)


# ------------------------------------------------------------------ outside


class Outside:
    """What must be as it was, whatever a task does."""

    def __init__(self, executor: ExecutorAlone, victim: TaskKey) -> None:
        self._executor = executor
        self._victim = victim
        self._folder = Path(tempfile.mkdtemp(prefix="hostile-", dir="/tmp"))
        self._file = self._folder / "secret"
        self._file.write_text(SECRET)
        self._tcp = socket.create_server(
            ("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100
        )
        self._abstract = socket.socket(socket.AF_UNIX)
        self._abstract.bind(f"\0{self._folder.name}")
        self._abstract.listen()
        for listener in (self._tcp, self._abstract):
            listener.setblocking(False)
        self._key = int.from_bytes(os.urandom(3), "big") | 1
        self._segment = ctypes.CDLL(None).shmget(self._key, 4096, IPC_CREATE | 0o666)

    def close(self) -> None:
        for listener in (self._tcp, self._abstract):
            listener.close()
        ctypes.CDLL(None).shmctl(self._segment, IPC_REMOVE, None)
        shutil.rmtree(self._folder)

    @property
    def targets(self) -> Targets:
        found = psutil.net_if_addrs().values()
        own = {a.address for all_of in found for a in all_of if a.family == socket.AF_INET}
        return Targets(
            docker_socket=self._executor.docker_host.removeprefix("unix://"),
            host_file=str(self._file),
            other_task=str(self._executor.directory(self._victim)),
            addresses=tuple(sorted({"127.0.0.1", "::1", *own})),
            port=self._tcp.getsockname()[1],
            abstract_name=self._folder.name,
            shared_memory_key=self._key,
        )

    def state(self) -> dict[str, object]:
        """Everything that can be compared before and after."""
        null = Path("/dev/null").stat()
        victim = self._executor.directory(self._victim)
        keeper = next((self._executor.home / "lib").glob("keeper*"))
        return {
            "the file": (self._file.read_text(), self._file.stat().st_mode),
            "the kernel": {name: _text(Path("/proc/sys", name)) for name in KERNEL},
            "its helper": _text(Path("/sys/kernel/uevent_helper")),
            "/dev/null": (null.st_mode, null.st_uid, null.st_gid, null.st_rdev),
            "the clock, in minutes": round((time.time() - time.clock_gettime(7)) / 60),
            "mounts": Path("/proc/self/mountinfo").read_text().count(self._folder.name),
            "the keeper": hashlib.sha256(keeper.read_bytes()).hexdigest(),
            "the other task": {name: _text(victim / name) for name in ("spec", "log", "run")},
            "its output": sorted(path.name for path in (victim / "output").iterdir()),
            "connections": self._connections(),
            "the executor": self._executor.pid(),
        }

    def _connections(self) -> int:
        count = 0
        for listener in (self._tcp, self._abstract):
            with suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    count += 1
        return count


def _text(path: Path) -> bytes | None:
    with suppress(OSError):
        return path.read_bytes()
    return None


def processes_left() -> list[int]:
    """Of hostile tasks, anywhere on the host."""
    left = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and MARK.encode() in (entry / "environ").read_bytes():
                left.append(int(entry.name))
    return left


@contextmanager
def outside(executor: ExecutorAlone, name: str) -> Iterator[Outside]:
    """With another task that runs beside, whose log and output are looked at too."""
    code = "echo mine > /output/mine; echo up; while [ ! -e /output/go ]; do sleep 0.1; done"
    victim = executor.assign(
        task("sh", "-c", code, name=own(name), cpus=0.1), secrets={"TOKEN": "secret-of-another"}
    )
    executor.wait(lambda: b"up" in executor.output(victim), "the other task up")
    found = Outside(executor, victim)
    try:
        yield found
        (executor.directory(victim) / "output" / "go").touch()
        assert executor.wait_report(victim).phase == "succeeded"
    finally:
        found.close()


# ------------------------------------------------------------------ attacks and bombs


def attack_all(
    executor: ExecutorAlone, targets: Targets, but: tuple[str, ...] = ()
) -> list[Row]:
    """Every attack in one container."""
    program = Path(attacks.__file__).read_bytes()
    given = InputSpec(
        path="attacks.py", size_bytes=len(program), sha256=hashlib.sha256(program).hexdigest()
    )
    command = ("python3", "/task/attacks.py", json.dumps(asdict(targets)), *but)
    key = executor.assign(
        task(*command, name=own("attacks"), inputs=(given,), environment={MARK: "1"}, cpus=1.0),
        blobs=(program,),
    )
    report = executor.wait_report(key)
    said = executor.output(key).decode()
    assert report.exit_code == 0, (report, said, executor.output(key, 2))
    assert SECRET not in said
    outcomes = {one["name"]: one["outcome"] for one in map(json.loads, said.splitlines())}
    return [
        Row(name, one.wall, one.what, outcomes[name], outcomes[name].startswith("blocked"))
        for name, one in ATTACKS.items()
        if name not in but
    ]


class Bombed:
    """All bombs at once; how each ended."""

    def __init__(self, executor: ExecutorAlone, names: tuple[str, ...] = tuple(BOMBS)) -> None:
        self.executor = executor
        self.beats_s: list[float] = []
        self.pids = {executor.pid()}
        self.keys = {name: self._assign(name) for name in names}
        executor.wait(self._all_final, "the end of all bombs", 120)
        self.reports = {name: executor.wait_report(key) for name, key in self.keys.items()}
        self.pids.add(executor.pid())

    def _assign(self, name: str) -> TaskKey:
        bomb = BOMBS[name]
        code = IMPORTS + textwrap.dedent(bomb.code)
        fields = {"cpus": 0.5, "environment": {MARK: "1"}, **bomb.fields}
        return self.executor.assign(task("python3", "-c", code, name=own(name), **fields))

    def _all_final(self) -> bool:
        state = self.executor.state()
        if state is None:
            return False
        self.beats_s.append(state.at_s)
        return _final(state) >= set(self.keys.values())

    def faults(self, name: str) -> list[str]:
        """What is not as it must be."""
        bomb, report, key = BOMBS[name], self.reports[name], self.keys[name]
        said = self.executor.output(key).decode()
        log_bytes = (self.executor.directory(key) / "log").stat().st_size
        limit_bytes = bomb.fields.get("log_limit_bytes", 2**26)
        cpu_s, most_s = report.cpu_s or 0, _cpu_limit_s(report, bomb.fields)
        checks = {
            f"it is {report.phase}: {report.error}": re.fullmatch(bomb.phase, report.phase),
            f"it said {said[:200]!r}": re.fullmatch(bomb.says, said) is not None,
            f"its log has {log_bytes} bytes": log_bytes <= limit_bytes + 4096,
            f"it used {cpu_s} s of CPU, its share is {most_s}": cpu_s <= most_s,
            "nothing was dropped": limit_bytes != LOG_LIMIT_BYTES or report.log_bytes_dropped > 0,
        }
        return [fault for fault, is_right in checks.items() if not is_right]

    def rows(self) -> list[Row]:
        return [
            Row(
                name, BOMBS[name].wall, BOMBS[name].what,
                f"{report.phase} {report.exit_code}; {report.error}", not self.faults(name),
            )
            for name, report in self.reports.items()
        ]  # fmt: skip


def _final(state: TaskState) -> set[TaskKey]:
    return {TaskKey(t.task_id, t.attempt) for t in state.tasks if t.phase.is_final}


def _cpu_limit_s(report: Report, fields: dict[str, object]) -> float:
    """Its share of the time; twice and a second, since the kernel gives it in slices."""
    cpus = fields.get("cpus", 0.5)
    assert isinstance(cpus, float)
    return 2 * cpus * max(report.run_s, float(SHORT["timeout_s"])) + 1
