"""The whole worker: a copy of the checkout under its own supervisord, and a master for it.

Shared by tests/system and tests/bench. What a test does to one process alone is elsewhere, in
tests/fakes. Looks at the worker only from outside: processes, bus, files, Docker, the master.
"""

import base64
import hashlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import docker

from procs.client.api import Master as Api
from shared.bus import Tap
from shared.messages import TaskState
from tests.fakes.supervised import programs_of

ROOT = Path(__file__).parents[2]
PROGRAMS = ("master_link", "executor", "monitor@host", "vpn", "web", "watchdog")
LONGEST_S = 60.0  # a loaded machine; nothing here takes a tenth of it on a quiet one
EVERY_S = 0.002  # between two looks: what is measured is printed in milliseconds
SUPERVISORD = (sys.executable, "-m", "supervisor.supervisord", "-c", "supervisor.conf")
SUPERVISORCTL = (sys.executable, "-m", "supervisor.supervisorctl", "-c", "supervisor.conf")

T = TypeVar("T")


def until(look: Callable[[], T], what: str, every_s: float = 0.02) -> T:
    """What `look` returns as soon as it is true."""
    deadline_s = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline_s:
        if found := look():
            return found
        select.select([], [], [], every_s)
    raise AssertionError(f"not within {LONGEST_S:.0f} s: {what}")


def check_out(folder: Path) -> None:
    """The tracked files, as a clone has them; with changes that are not committed yet."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A unix socket's path is short."""
    folder = Path(tempfile.mkdtemp(prefix="hmw-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Worker:
    """The worker in the checkout at `folder`; `settings` are its environment."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.home = folder / "var"
        page = f"127.0.0.1:{free_port()}"
        self._settings = {"WEB_LISTEN": page, "VPN": "off", "EGRESS": "off", **settings}
        self._daemon: subprocess.Popen[bytes] | None = None

    def setting(self, name: str) -> str:
        return self._settings[name]

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    def start(self) -> None:
        self._daemon = subprocess.Popen(
            (*SUPERVISORD, "-n"),
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **self._settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """SIGKILL to supervisord; back when none of its processes lives."""
        pids = [*self.pids().values()]
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        until(lambda: not any(lives(pid) for pid in pids), "the programs die with supervisord")

    def stop(self) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            self._daemon.wait(LONGEST_S)

    def pids(self) -> dict[str, int]:
        return programs_of(self.pid)

    def is_whole(self) -> bool:
        return self.pids().keys() == set(PROGRAMS)

    def kill_program(self, name: str) -> float:
        """SIGKILL; seconds from then until its successor is there."""
        before = self.pids()[name]
        os.kill(before, signal.SIGKILL)
        began_s = time.monotonic()
        until(lambda: self.pids().get(name, before) != before, f"{name} is back", EVERY_S)
        return time.monotonic() - began_s

    def spoken(self, *names: str) -> None:
        """Each of these processes has said something synced after this call."""
        began_s = time.monotonic()
        missing = set(names)
        with closing(Tap(self.home)) as tap:
            while missing and time.monotonic() < began_s + LONGEST_S:
                heard = tap.next(0.1)
                if heard is not None and heard[1].synced and heard[1].at_s >= began_s:
                    missing.discard(heard[0])
        assert not missing, f"silent: {missing}\n{self.logs()}"

    def may_take(self, memory_bytes: int) -> None:
        """The executor has heard how far the master trusts this node."""
        with closing(Tap(self.home, ["task.state"])) as tap:

            def enough() -> bool:
                heard = tap.next(0.1)
                state = heard[1] if heard is not None else None
                return (
                    isinstance(state, TaskState)
                    and state.engine.available
                    and state.capacity.memory_bytes >= memory_bytes
                )

            until(enough, f"a task may have {memory_bytes} bytes")

    def logs(self) -> str:
        paths = sorted((self.home / "log").glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in paths)

    def held(self) -> list[str]:
        """The names in `tasks/`."""
        return sorted(path.name for path in (self.home / "tasks").iterdir())

    def container_ids(self, engine: str) -> set[str]:
        with docker_api(engine) as api:
            label = {"label": f"hivemind.home={self.home}"}
            return {row["Id"] for row in api.containers(all=True, filters=label)}


def lives(pid: int) -> bool:
    """A zombie does not: nobody may be there to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def docker_api(engine: str) -> Iterator[docker.APIClient]:
    api = docker.APIClient(base_url=engine, version="1.41", timeout=60)
    try:
        yield api
    finally:
        api.close()


@dataclass(frozen=True)
class Things:
    """What an engine has besides images; Docker's own networks are left out."""

    containers: frozenset[str]
    networks: frozenset[str]
    volumes: frozenset[str]


def things(engine: str) -> Things:
    with docker_api(engine) as api:
        volumes = api.volumes()["Volumes"] or []
        return Things(
            frozenset(row["Id"] for row in api.containers(all=True)),
            frozenset(row["Id"] for row in api.networks()),
            frozenset(row["Name"] for row in volumes),
        )


def processes_of(containers: set[str]) -> list[str]:
    """The processes in the cgroups of these containers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            text = path.read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if any(one in text for one in containers) and lives(int(path.parent.name)):
            found.append(path.parent.name)
    return found


# ------------------------------------------------------------------ the master


@dataclass(frozen=True)
class Output:
    """A task's output as the master has it."""

    sha256: str
    files: dict[str, str] = field(default_factory=dict)  # name → SHA-256 of its content


class Master:
    """`hivemind-master serve` as a process of its own, with what a client does."""

    def __init__(self, data: Path) -> None:
        arguments = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--trust-level", "3")
        self._log = (data.parent / "master.log").open("wb")
        self._process = subprocess.Popen(
            (sys.executable, "-m", "procs.master", "serve", "--data", str(data), *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        ready = re.search(r"http=(\S+)", line)
        assert ready is not None, (data.parent / "master.log").read_text()
        self.url = ready[1]
        self._api = Api(self.url)

    def close(self) -> None:
        self._api.close()
        self._process.terminate()
        self._process.communicate()
        self._log.close()

    def has_ready_node(self) -> bool:
        return any(n["state"] == "ready" and n["channel_open"] for n in self.nodes())

    def node_count(self) -> int:
        return len(self.nodes())

    def nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self._api.get("/api/v1/nodes")["nodes"]
        return nodes

    def submit(self, *command: str, **more: Any) -> str:
        return str(self._api.post("/api/v1/tasks", {"command": list(command), **more})["task_id"])

    def upload(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self._api.put_input(sha256, iter([content]))
        return sha256

    def task(self, task_id: str) -> dict[str, Any]:
        return self._api.get(f"/api/v1/tasks/{task_id}")

    def cancel(self, task_id: str) -> None:
        self._api.post(f"/api/v1/tasks/{task_id}/cancel")

    def is_running(self, task_id: str) -> bool:
        """It runs, and has printed something."""
        task = self.task(task_id)
        assert not task["ended"], task
        return bool(task["state"] == "running" and task["log_records"])

    def ended(self, task_id: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["ended"] else None

        found = until(look, f"{task_id} ends")
        assert found is not None
        return found

    def log(self, task_id: str) -> dict[str, bytes]:
        """stdout and stderr, each in order."""
        found = {"stdout": b"", "stderr": b"", "worker": b""}
        sequences = []
        for line in self._api.log(task_id, None, 0, follow=False):
            if line and "data" in line:
                sequences.append(line["sequence"])
                found[line["stream"]] += base64.b64decode(line["data"])
        assert sequences == list(range(len(sequences)))
        return found

    def output(self, task_id: str) -> Output:
        with tempfile.TemporaryFile() as file:
            whole = hashlib.sha256()
            for chunk in self._api.output(task_id):
                file.write(chunk)
                whole.update(chunk)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as archive:
                return Output(whole.hexdigest(), dict(_contents(archive)))


def _contents(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    for entry in archive:
        content = archive.extractfile(entry)
        if content is not None:
            yield entry.name, hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]


def _enter_namespace(configuration: Path, namespace: str) -> None:
    text = configuration.read_text()
    start = "/bin/sh %(here)s/procs/start.sh vpn"
    assert start in text
    configuration.write_text(text.replace(start, f"nsenter --net=/run/netns/{namespace} {start}"))


@contextmanager
def whole(
    engine: str, image: str, namespace: str = "", **settings: str
) -> Iterator[tuple[Worker, Master]]:
    """A worker that is ready, and its master. `namespace`: of the engine's network, for vpn."""
    with short_folder() as folder, closing(Master(folder / "m")) as master:
        check_out(folder / "c")
        if namespace:
            _enter_namespace(folder / "c" / "supervisor.conf", namespace)
        worker = Worker(
            folder / "c",
            MASTER_NODE_URL=master.url,
            DOCKER_HOST=engine,
            TASK_IMAGE=image,
            NODE_NAME="test",
            **settings,
        )
        worker.start()
        try:
            until(master.has_ready_node, "the node is ready")
            yield worker, master
        except AssertionError as err:
            raise AssertionError(f"{err}\n{worker.logs()}") from err
        finally:
            worker.stop()
