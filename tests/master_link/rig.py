"""master_link in this process, between a fake executor on the real bus and a fake master."""

import asyncio
import contextlib
import hashlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procs.master_link.main import Link
from procs.master_link.news import READS
from shared.bus import Bus
from shared.messages import HostLoad, Inventory, LinkState
from shared.pb import hivemind_pb2 as pb
from shared.service import Context
from shared.settings import load
from shared.taskdir import TaskKey
from tests.fakes.executor import FakeExecutor
from tests.fakes.link_master import FakeMaster

INVENTORY = Inventory(
    operating_system="Debian", kernel="6", architecture="x86_64", cpu_count=4, memory_bytes=2**33
)


def request(task_id: str = "t", attempt: int = 1, **more: Any) -> pb.TaskAssignmentRequest:
    return pb.TaskAssignmentRequest(task_id=task_id, attempt=attempt, **more)


def task_input(path: str, content: bytes, inline: bool = False) -> pb.TaskInput:
    return pb.TaskInput(
        path=path,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).digest(),
        inline=content if inline else b"",
    )


@contextlib.contextmanager
def short_home() -> Any:
    """A unix socket's path is short: pytest's own folder is too deep."""
    home = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    for folder in ("run/bus", "lib", "tasks", "log"):
        (home / folder).mkdir(parents=True)
    try:
        yield home
    finally:
        shutil.rmtree(home)


@dataclass
class Rig:
    """What a test holds."""

    home: Path
    master: FakeMaster
    executor: FakeExecutor
    settings: dict[str, str]
    link: Link | None = None
    _stop: asyncio.Event | None = None
    _running: asyncio.Task[None] | None = None
    _bus: Bus | None = None

    async def start_link(self) -> Link:
        environment = {
            "HIVEMIND_HOME": str(self.home),
            "MASTER_NODE_URL": self.master.url,
            "NODE_NAME": "test",
            "TASK_IMAGE": "image:default",
            **self.settings,
        }
        settings = load(environment, self.home)
        self._bus = Bus(self.home, "master_link", READS)
        log = logging.getLogger("master_link")
        context = Context("master_link", settings, self._bus, threading.Event(), log)
        self._stop = asyncio.Event()
        self.link = Link(context)
        self._running = asyncio.create_task(self.link.run(self._stop))
        return self.link

    async def stop_link(self) -> None:
        assert self._stop is not None
        assert self._running is not None
        assert self._bus is not None
        self._stop.set()
        await self._running
        self._bus.close()
        self._running = None

    async def connected(self) -> None:
        await self.until(lambda: self.master.channel is not None)

    async def until(self, what: Any, limit_s: float = 20.0) -> None:
        async with asyncio.timeout(limit_s):
            while not what():
                if self._running is not None and self._running.done():
                    self._running.result()
                await asyncio.sleep(0.01)

    async def assign(self, key: TaskKey, **more: Any) -> None:
        """Accepted, and known to the executor."""
        answer = await self.master.assign(request(key.task_id, key.attempt, **more))
        assert answer.accepted, answer
        await self.until(lambda: key in self.executor.held)

    async def delivered(self, key: TaskKey, times: int = 1) -> pb.TaskResultRequest:
        await self.until(lambda: len(self.master.memory.results.get(key, [])) >= times)
        return pb.TaskResultRequest.FromString(self.master.memory.results[key][-1])

    async def kept(self, key: TaskKey) -> Path:
        path = self.home / "kept" / key.directory
        await self.until(lambda: path.exists() and not self.executor.directory(key).exists())
        return path

    def link_state(self) -> LinkState:
        """As it would be published now."""
        assert self.link is not None
        return self.link.link_state(time.monotonic())


@contextlib.asynccontextmanager
async def rig(
    runs: bool = False, start: bool = True, **settings: str
) -> AsyncIterator[Rig]:
    """`runs`: the executor runs each task at once."""
    with short_home() as home:
        master = FakeMaster()
        await master.start()
        executor = FakeExecutor(home, runs)
        made = Rig(home, master, executor, settings)
        try:
            async with measuring(home):
                if start:
                    await made.start_link()
                    await made.connected()
                yield made
        finally:
            if made._running is not None:
                await made.stop_link()
            await executor.close()
            await master.close()


@contextlib.asynccontextmanager
async def told_hardware(home: Path) -> AsyncIterator[None]:
    """An executor and a monitor that speak: a node registers without a wait for them."""
    executor = FakeExecutor(home)
    try:
        async with measuring(home):
            yield
    finally:
        await executor.close()


@contextlib.asynccontextmanager
async def measuring(home: Path) -> AsyncIterator[None]:
    """A monitor that speaks."""
    monitor = Bus(home, "monitor@host")
    task = asyncio.create_task(_measure(monitor))
    try:
        yield
    finally:
        task.cancel()
        monitor.close()


async def _measure(monitor: Bus) -> None:
    while True:
        monitor.publish(
            HostLoad(at_s=time.monotonic(), inventory=INVENTORY, cpu_pct=60.0, memory_pct=60.0)
        )
        monitor.drain()
        await asyncio.sleep(0.1)
