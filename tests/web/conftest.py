"""A web process in this one, on a real bus and a real port, beside a worker that beats."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from procs.web.main import READS, run
from shared.bus import Bus
from shared.messages import HeldTask, TaskState, VpnState
from shared.service import Context
from shared.settings import Settings, load
from tests.fakes.bus_worker import BusWorker, gpu_load, say_all, short_home
from tests.fakes.keeper_log import KeeperLog

DEADLINE_S = 30.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.02)


class Beating:
    """The other processes of a worker, from one thread; `tasks` and `silent` may be changed."""

    def __init__(self, home: Path) -> None:
        self.tasks: tuple[HeldTask, ...] = ()
        self.silent = False
        self.has_gpus = False
        self.host: dict[str, object] = {}  # what the monitor says beside the usual
        self.link: dict[str, object] = {}  # what the link says beside the usual
        self.vpn: VpnState | None = None  # None: as it is where there is no VPN
        self.synced = True  # False: the executor lives, and knows nothing yet
        self.home = home
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()

    def _beat(self) -> None:
        worker = BusWorker(self.home)
        while not self._end.wait(0.1):
            if self.silent:
                worker.serve()
            else:
                say_all(worker, *self.tasks, host=self.host, **self.link)
                if self.has_gpus:
                    worker.say("monitor@gpu0", gpu_load(time.monotonic()))
                if self.vpn is not None:
                    said = msgspec.structs.replace(self.vpn, at_s=time.monotonic())
                    worker.say("vpn", said)
                if not self.synced:
                    worker.say("executor", TaskState(at_s=time.monotonic(), synced=False))
        worker.close()

    def close(self) -> None:
        self._end.set()
        self._thread.join()


class Serving:
    """`run` of the web process, in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.web_port}"
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_for(self.answers, f"{self.url} answers")

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.settings.web_port), 1).close()
        except OSError:
            return False
        return True

    def _run(self) -> None:
        bus = Bus(self.settings.home, "web", READS)
        context = Context("web", self.settings, bus, threading.Event(), logging.getLogger("web"))
        try:
            asyncio.run(self._until_stopped(context))
        finally:
            bus.close()

    async def _until_stopped(self, context: Context) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await run(context, self._stop)

    def pages(self) -> int:
        """How many pages are open: each has a stream in a task of the loop."""
        if self._loop is None:
            return 0
        names = [str(task.get_coro()) for task in asyncio.all_tasks(self._loop)]
        return sum("run_asgi" in name for name in names)

    def close(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as path:
        yield path


@pytest.fixture
def task_log(home: Path) -> Iterator[Callable[[str], KeeperLog]]:
    """Makes the log of a held task, by its directory's name."""
    made: list[KeeperLog] = []

    def make(name: str) -> KeeperLog:
        (home / "tasks" / name).mkdir()
        made.append(KeeperLog(home / "tasks" / name / "log"))
        return made[-1]

    yield make
    for log in made:
        log.close()


@pytest.fixture
def settings(home: Path) -> Settings:
    return replace(load({"HIVEMIND_HOME": str(home)}, home), web_port=free_port())


@pytest.fixture
def beating(home: Path) -> Iterator[Beating]:
    made = Beating(home)
    yield made
    made.close()


@pytest.fixture
def serving(settings: Settings, beating: Beating) -> Iterator[Serving]:
    made = Serving(settings)
    yield made
    made.close()
