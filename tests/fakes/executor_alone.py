"""The executor as a real process under a real supervisord, and a master_link that wants tasks.

Everything is real but the link: it writes task directories and publishes `task.want` itself.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import docker
import msgspec

from procs.executor.sandbox import container_name
from shared import taskdir
from shared.bus import Bus
from shared.egress import names
from shared.files import remove_tree
from shared.messages import (
    HeldTask,
    LinkState,
    StopReason,
    TaskState,
    TaskWant,
    VpnState,
    WantedTask,
)
from shared.taskdir import LOG, SPEC, TASKS, Report, Spec, TaskKey, read_report, write_record
from shared.tasklog import LogReader

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
CONFIG = """
[supervisord]
pidfile = {home}/s.pid
logfile = {home}/s.log
"""
PROGRAM = """
[program:{title}]
command = {launcher}/bin/sh {root}/procs/start.sh {name}
directory = {root}
startsecs = 0
autorestart = unexpected
exitcodes = 2
stopasgroup = true
killasgroup = true
stdout_logfile = NONE
stderr_logfile = {home}/{title}.err
"""


class Deadline(AssertionError):
    """What was waited for did not come."""


class ExecutorAlone:
    """One home, one executor process, and the link's side of the bus.

    With the engine's network namespace it has EGRESS, and the vpn process there.
    """

    def __init__(
        self, docker_host: str, namespace: str = "", home: Path | None = None, **settings: str
    ) -> None:
        self._namespace = namespace
        self.beside: tuple[str, ...] = ()  # other programs, as start.sh is told: "monitor host"
        self.home = home or Path(tempfile.mkdtemp(prefix="hx-", dir="/tmp"))
        (self.home / "run" / "bus").mkdir(parents=True)
        (self.home / TASKS).mkdir()
        self._environment = {
            "PATH": os.environ["PATH"], "HIVEMIND_HOME": str(self.home),
            "DOCKER_HOST": docker_host, "LOG_LEVEL": "DEBUG", "VPN": "off",
            "EGRESS": "on" if namespace else "off", **settings,
        }  # fmt: skip
        self.bus = Bus(self.home, "master_link", ["task.state", "vpn.state"])
        self.wanted: dict[TaskKey, WantedTask] = {}
        self.docker_host = docker_host
        self.docker = docker.APIClient(base_url=docker_host, version="1.41")
        self._supervisord: subprocess.Popen[bytes] | None = None

    # -------------------------------------------------------------- the process

    def start(self, *within: str) -> "ExecutorAlone":
        """`within`: a command that runs the one that is appended to it."""
        config = self.home / "s.conf"
        programs = dict.fromkeys(("executor", *self.beside), "")
        if self._namespace:
            programs["vpn"] = f"nsenter --net=/run/netns/{self._namespace} "
        sections = [
            PROGRAM.format(
                home=self.home, root=ROOT, name=name, title=name.replace(" ", "@"),
                launcher=launcher,
            )
            for name, launcher in programs.items()
        ]  # fmt: skip
        config.write_text(CONFIG.format(home=self.home) + "".join(sections))
        command = [*within, sys.executable, "-m", "supervisor.supervisord", "-nc", str(config)]
        self._supervisord = subprocess.Popen(
            command, cwd=self.home, env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return self

    def pid(self, name: str = "executor") -> int:
        """The process of that name; waits until there is one."""
        return self.wait(lambda: self._find(name), f"{name}'s process")

    def _find(self, name: str = "executor") -> int:
        assert self._supervisord is not None
        pid = self._supervisord.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                if f"procs.{name}".encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        return 0

    def kill(self) -> int:
        """SIGKILL the executor; its old pid."""
        self.pid()
        return self.kill_now()

    def kill_now(self) -> int:
        """The same, from any thread, of one that is there."""
        pid = self._find()
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_supervisord(self) -> None:
        """SIGKILL; back when the executor has died with it."""
        pid = self.pid()
        assert self._supervisord is not None
        self._supervisord.kill()
        self._supervisord.wait(30)
        self._supervisord = None
        self.wait(lambda: not Path(f"/proc/{pid}/exe").exists(), "the executor's death")

    def halt(self) -> None:
        """Both processes end in order; `start` begins another life of the same home."""
        if self._supervisord is not None:
            self._supervisord.terminate()
            self._supervisord.wait(30)
            self._supervisord = None

    def stop(self) -> None:
        self.halt()
        self.bus.close()
        for container in self.containers():  # of a test that failed: they keep its networks
            self.docker.remove_container(container, force=True)
        for network in self.networks():
            self.docker.remove_network(network)
        if self._namespace:
            table = names(self.home).table  # kept while there is a bridge
            self.beside_engine("nft", f"table inet {table} {{\n}}; delete table inet {table}")
        self.docker.close()
        remove_tree(self.home)

    def beside_engine(self, *command: str) -> str:
        """In the engine's network namespace."""
        enter = ("nsenter", f"--net=/run/netns/{self._namespace}")
        return subprocess.run(
            (*enter, *command), check=True, capture_output=True, text=True
        ).stdout

    # -------------------------------------------------------------- the link's side

    def assign(
        self,
        spec: Spec,
        secrets: dict[str, str] | None = None,
        blobs: tuple[bytes, ...] = (),
        want: bool = True,
    ) -> TaskKey:
        """Accept a task as master_link does, and want it (else as `wanted` has it already)."""
        directory = self.directory(spec.key)
        (directory / "blobs").mkdir(parents=True, exist_ok=True)
        for index, blob in enumerate(blobs):
            (directory / "blobs" / str(index)).write_bytes(blob)
        if secrets:
            (directory / taskdir.SECRETS).write_text(json.dumps(secrets))
            spec = msgspec.structs.replace(spec, secret_names=tuple(secrets))
        write_record(directory / SPEC, spec)
        if want:
            self.wanted[spec.key] = WantedTask(task_id=spec.task_id, attempt=spec.attempt)
        self.publish()
        return spec.key

    @staticmethod
    def stopped(key: TaskKey) -> WantedTask:
        return WantedTask(task_id=key.task_id, attempt=key.attempt, stop=StopReason.CANCELLED)

    def cancel(self, key: TaskKey) -> None:
        self.wanted[key] = self.stopped(key)
        self.publish()

    def forget(self, key: TaskKey) -> None:
        """As after a delivered result."""
        del self.wanted[key]
        self.publish()

    def publish(self) -> None:
        now_s = time.monotonic()
        self.bus.publish(LinkState(at_s=now_s, node_id="node-1", trust_level=3))
        self.bus.publish(TaskWant(at_s=now_s, tasks=tuple(self.wanted.values())))

    def wait(self, condition: Callable[[], T], what: str, timeout_s: float = 60.0) -> T:
        """Beat as the link until the condition holds; its value."""
        deadline_s = time.monotonic() + timeout_s
        beat_s = 0.0
        while not (value := condition()):
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise Deadline(f"{what}: not within {timeout_s} s; {self.story()}")
            if now_s >= beat_s:
                self.publish()
                beat_s = now_s + 1
            self.bus.wait(0.05)
        return value

    def story(self) -> str:
        log = self.home / "log" / "executor.log"
        tail = log.read_text()[-4000:] if log.exists() else "no log"
        errors = "".join(path.read_text()[-2000:] for path in self.home.glob("*.err"))
        return f"{tail}\n{errors}"

    # -------------------------------------------------------------- what became of it

    def directory(self, key: TaskKey) -> Path:
        return self.home / TASKS / key.directory

    def state(self) -> TaskState | None:
        return self.bus.inbox.fresh(TaskState, time.monotonic())

    def held(self, key: TaskKey) -> HeldTask | None:
        state = self.state()
        found = [t for t in state.tasks if (t.task_id, t.attempt) == key] if state else []
        return found[0] if found else None

    def wait_phase(self, key: TaskKey, phase: str, timeout_s: float = 60.0) -> HeldTask:
        def there() -> HeldTask | None:
            held = self.held(key)
            return held if held and phase in [p.phase for p in held.phases] else None

        found = self.wait(there, f"{key} {phase}", timeout_s)
        assert found is not None
        return found

    def wait_report(self, key: TaskKey, timeout_s: float = 60.0) -> Report:
        def final() -> bool:
            held = self.held(key)
            return held is not None and held.phase.is_final

        self.wait(final, f"the end of {key}", timeout_s)
        return read_report(self.directory(key))

    def wait_released(self, key: TaskKey) -> None:
        self.forget(key)
        self.wait(lambda: self.state() and not self.held(key), f"{key} released")

    def available(self) -> bool:
        state = self.state()
        return state is not None and state.engine.available

    def containers(self) -> list[str]:
        """Names of this home's containers, whatever their state."""
        label = {"label": f"hivemind.home={self.home}"}
        return [row["Names"][0] for row in self.docker.containers(all=True, filters=label)]

    def networks(self) -> list[str]:
        """Names of this home's networks."""
        label = {"label": f"hivemind.home={self.home}"}
        return sorted(row["Name"] for row in self.docker.networks(filters=label))

    def vpn(self) -> VpnState | None:
        return self.bus.inbox.fresh(VpnState, time.monotonic())

    def inspect(self, key: TaskKey) -> dict[str, Any]:
        found: dict[str, Any] = self.docker.inspect_container(self.container_name(key))
        return found

    def container_name(self, key: TaskKey) -> str:
        return container_name(key, self.home)

    def output(self, key: TaskKey, stream: int = 1) -> bytes:
        reader = LogReader(self.directory(key) / LOG)
        data = b""
        while records := reader.read():
            data += b"".join(r.data for r in records if r.stream == stream)
        reader.close()
        return data


def task(*command: str, name: str = "t", **fields: Any) -> Spec:
    """A spec with small limits, for the tests' task image."""
    defaults: dict[str, Any] = {
        "cpus": 0.5, "memory_bytes": 128 * taskdir.MIB, "disk_bytes": 64 * taskdir.MIB,
        "processes": 32, "image": "hivemind-test-task:1", "accepted_unix_s": time.time(),
    }  # fmt: skip
    return Spec(task_id=name, attempt=1, command=command, **{**defaults, **fields})
