"""A worker's line to its master: a real master process, a proxy that does harm, a real
master_link process, and an executor that does nothing but make logs and archives.

What a task writes follows from its name, so that it can be checked without being kept.
"""

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from procs.client.api import Away
from procs.client.api import Master as Api
from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import ARCHIVE, TaskKey
from tests.fakes.counting_master import Counter
from tests.fakes.cutting_proxy import CuttingProxy
from tests.fakes.executor import FakeExecutor
from tests.fakes.netns import Wire
from tests.fakes.running_master import MasterProcess
from tests.fakes.supervised import Supervised, supervised
from tests.master_link.rig import measuring, short_home

MASTER_HOST = "127.0.0.2"  # where it listens; it tells of 127.0.0.1, where the proxy is
PROGRAMS = ("master_link", "watchdog")
COUNTER = "brought"
LOG_PIECES = 10
POLL_S = 0.1
MIB = 2**20


@dataclass(frozen=True)
class Load:
    """What each task writes, and for how long."""

    log_bytes: int
    output_bytes: int
    run_s: float = 0.5
    at_once: int = 8

    def log(self, key: TaskKey) -> bytes:
        return random.Random(f"log {key.directory}").randbytes(self.log_bytes)

    def output(self, key: TaskKey) -> bytes:
        return random.Random(f"output {key.directory}").randbytes(self.output_bytes)


NOTHING = Load(log_bytes=0, output_bytes=0, at_once=0)


class BusyExecutor(FakeExecutor):
    """Runs each task that it is given, a few at once. NOTHING: its test does."""

    def __init__(self, home: Path, load: Load) -> None:
        self.load = load
        self._at_once = asyncio.Semaphore(load.at_once)
        self._running: dict[TaskKey, asyncio.Task[None]] = {}
        self.faults: list[str] = []
        super().__init__(home, runs=load is not NOTHING)

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await super().close()

    def run(self, key: TaskKey) -> None:
        if self.load is NOTHING:
            super().run(key)
        elif key not in self._running:
            self._running[key] = asyncio.create_task(self._run(key))
            self._running[key].add_done_callback(self._note)

    def _note(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (err := task.exception()) is not None:
            self.faults.append("".join(traceback.format_exception(err)))

    async def _run(self, key: TaskKey) -> None:
        async with self._at_once:
            self.move(key, TaskPhase.PREPARING)
            self.move(key, TaskPhase.RUNNING)
            content = self.load.log(key)
            step = max(1, len(content) // LOG_PIECES)
            for start in range(0, len(content), step):
                self.log(key).write(content[start : start + step])
                await asyncio.sleep(self.load.run_s / LOG_PIECES)
            self.move(key, TaskPhase.COLLECTING)
            self.finish(key, **await asyncio.to_thread(self._archive, key))
            self.logs.pop(key).close()

    def _archive(self, key: TaskKey) -> dict[str, Any]:
        if not self.load.output_bytes:
            return {}
        content = self.load.output(key)
        (self.directory(key) / ARCHIVE).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return {"output_sha256": digest, "output_bytes": len(content), "output_files": 1}


@dataclass
class Line:
    """All of it, running."""

    home: Path
    data: Path
    master: MasterProcess
    proxy: CuttingProxy
    worker: Supervised
    executor: BusyExecutor
    api: Api
    keys: list[TaskKey] = field(default_factory=list)

    async def submit(self, count: int) -> None:
        for number in range(len(self.keys), len(self.keys) + count):
            body = {"task_id": f"t{number}", "command": ["x"]}
            await asyncio.to_thread(self.api.post, "/api/v1/tasks", body)
            self.keys.append(TaskKey(f"t{number}", 1))

    async def connected(self, limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while not await self._has_channel():
                await asyncio.sleep(POLL_S)

    async def _has_channel(self) -> bool:
        try:
            nodes = await asyncio.to_thread(self.api.get, "/api/v1/nodes")
        except Away:
            return False
        return any(node["channel_open"] for node in nodes["nodes"])

    async def all_ended(self, limit_s: float) -> None:
        async with asyncio.timeout(limit_s):
            while await self.open_tasks():
                assert not self.executor.faults, self.executor.faults
                await asyncio.sleep(POLL_S)

    async def open_tasks(self) -> int:
        """How many have not ended, by the master's own database: it may be dead just now."""
        return await asyncio.to_thread(self._count, "SELECT COUNT(*) FROM tasks WHERE state = 0")

    def _count(self, query: str) -> int:
        path = f"file:{self.data}/master.db?mode=ro"
        with closing(sqlite3.connect(path, uri=True, timeout=10)) as database:
            return int(database.execute(query).fetchone()[0])

    def brought_bytes(self) -> int:
        """Of logs and outputs, to the master's own calls: more than once, if sent again."""
        return Counter(self.data / COUNTER).read()

    # -------------------------------------------------------------- kills

    async def kill_link(self) -> None:
        """SIGKILL, as soon as there is one; supervisord starts another."""
        async with asyncio.timeout(60.0):
            while (pid := self.worker.pids().get("master_link")) is None:
                await asyncio.sleep(POLL_S)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def kill_master(self) -> None:
        await self.master.kill()
        await self.master.start()

    def link_pid(self) -> int:
        return self.worker.pids()["master_link"]

    # -------------------------------------------------------------- what has come

    async def faults(self) -> list[str]:
        """What did not arrive once and byte by byte."""
        found: list[str] = []
        for key in self.keys:
            found += await asyncio.to_thread(self._faults, key)
        halves = list((self.data / "outputs").glob("*.part"))
        return found + [f"{path.name} is left" for path in halves]

    def _faults(self, key: TaskKey) -> list[str]:
        path = f"file:{self.data}/master.db?mode=ro"
        with closing(sqlite3.connect(path, uri=True)) as database:
            state, attempt = database.execute(
                "SELECT state, attempt FROM tasks WHERE task_id = ?", (key.task_id,)
            ).fetchone()
            chunks = database.execute(
                "SELECT body FROM log_chunks WHERE task_id = ? ORDER BY attempt, first_sequence",
                (key.task_id,),
            ).fetchall()
        records = [r for (body,) in chunks for r in pb.TaskLogChunk.FromString(body).records]
        said = b"".join(record.data for record in records)
        checks = {
            f"state {state}": state == pb.TASK_STATE_SUCCEEDED,
            f"attempt {attempt}": attempt == 1,
            "log's sequences": [r.sequence for r in records] == list(range(len(records))),
            "log's content": said == self.executor.load.log(key),
            "output": self._output(key) == self.executor.load.output(key),
        }
        return [f"{key.directory}: {what}" for what, holds in checks.items() if not holds]

    def _output(self, key: TaskKey) -> bytes:
        names = list((self.data / "outputs").glob(f"{key.directory}.*.tar.gz"))
        return names[0].read_bytes() if len(names) == 1 else b""


def count_bytes(load: Load, tasks: int) -> int:
    return tasks * (load.log_bytes + load.output_bytes)


@dataclass(frozen=True)
class Where:
    """How master and worker are connected. `wire`: the worker is in its namespace, and the master
    is called `name` there; else by the proxy, unless `direct`. `ready`: once they are."""

    tls: bool = False
    direct: bool = False
    wire: Wire | None = None
    name: str = ""
    ready: bool = True

    def options(self, proxy: CuttingProxy) -> list[str]:
        if self.wire is not None:
            here, name = f"{self.wire.master}:0", self.name or self.wire.master
            return ["--listen", here, "--http", here, "--join", here, "--host", name]
        options = ["--listen", f"{MASTER_HOST}:{proxy.port}"]
        options += [] if self.direct else ["--host", proxy.host]
        return options + (["--tls", "--join", "127.0.0.1:0"] if self.tls else [])


@asynccontextmanager
async def line(
    data: Path, load: Load, where: Where = Where(), **settings: str
) -> AsyncIterator[Line]:
    """Nothing submitted yet."""
    proxy = CuttingProxy()
    await proxy.start()
    proxy.target = (MASTER_HOST, proxy.port)
    data.mkdir(parents=True, exist_ok=True)
    program: tuple[str, ...] = ("tests.fakes.counting_master", str(data / COUNTER))
    if where.direct:  # nothing slows it: counting would
        program = ("procs.master",)
    options = (*where.options(proxy), "--trust-level", "3")
    master = MasterProcess(data, *options, program=program)
    try:
        await master.start()
        async with _worker(data, load, master, proxy, where, settings) as made:
            yield made
    finally:
        await master.kill()
        await proxy.close()


@asynccontextmanager
async def _worker(
    data: Path,
    load: Load,
    master: MasterProcess,
    proxy: CuttingProxy,
    where: Where,
    settings: dict[str, str],
) -> AsyncIterator[Line]:
    tls = where.tls or where.wire is not None
    url = f"http{'s' * tls}://{master.http}"
    api = await asyncio.to_thread(Api, url, next(data.rglob("admin.token"), None))
    api.patient = True  # the master may be killed meanwhile
    if tls:
        body = {"uses": 1, "trust_level": 3}
        found = await asyncio.to_thread(api.order, "/api/v1/tokens", body)
        settings["MASTER_JOIN_TOKEN"] = str(found["token"])
    if where.name:
        url = f"https://{where.name}:{master.http.rpartition(':')[2]}"
    launcher = where.wire.enter() if where.wire is not None else ()
    with short_home() as home:
        executor = BusyExecutor(home, load)
        (home / "worker.conf").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        told = supervised(
            PROGRAMS, launcher=launcher, MASTER_NODE_URL=url, HIVEMIND_HOME=str(home)
        )
        try:
            async with measuring(home):
                with told as worker:
                    made = Line(home, data, master, proxy, worker, executor, api)
                    if where.ready:
                        await made.connected()
                    yield made
                    await asyncio.to_thread(worker.stop)
        finally:
            await executor.close()
            api.close()
