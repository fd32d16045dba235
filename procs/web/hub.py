"""Between the bus and the pages that are open: what is known, and the wake-up when it changes.

Belongs to the asyncio loop; what may block (files, the database) runs in a thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from procs.web import core
from procs.web.history import look
from procs.web.logs import Logs, Part
from procs.web.owner import load_owner, save_owner
from shared.history import Search
from shared.messages import HostLoad, OwnerWant, TaskState, VpnState
from shared.service import Context

GATHER_S = 0.1  # all processes beat at once: their STATEs go out as one
LOOK_S = 0.5  # how often logs are read while a page is open
TAIL_CHARACTERS = 64 * 1024  # of each task, kept for a page that opens
HISTORY_S = 3.0  # how often the database is asked while a page is open


class Hub:
    """The web process without HTTP."""

    def __init__(self, context: Context) -> None:
        self._bus = context.bus
        self._owner_path = context.home / "lib" / "owner.json"
        self._database = context.home / "lib" / "executor.db"
        self._owner = load_owner(self._owner_path)
        self._owner_lock = asyncio.Lock()
        self._samples = core.Samples()
        self._logs = Logs(context.home)
        self._tails: dict[str, core.LogTail] = {}
        self._history: dict[str, Any] | None = None
        self._news = asyncio.Event()
        self._page = b""
        self._opened = asyncio.Event()
        self.pages = 0
        self.closed = False

    # -------------------------------------------------------------- the bus

    def beat(self) -> None:
        self._bus.connect_new()
        self._publish()
        self._tell()

    def hear(self) -> None:
        """Something newer has come on the bus."""
        load = self._bus.inbox.fresh(HostLoad, time.monotonic())
        if load is not None:
            self._samples.add(load)
        self._tell()

    def _catch_up(self) -> None:
        """While no page is open, nothing is heard between the beats."""
        if self._bus.drain():
            self.hear()

    def _publish(self) -> None:
        self._bus.publish(
            OwnerWant(
                at_s=time.monotonic(),
                wish=self._owner.wish,
                stopped_tasks=self._owner.stopped_tasks,
                tunnel_key_after_unix_s=self._owner.tunnel_key_after_unix_s,
            )
        )

    def tasks(self) -> TaskState | None:
        self._catch_up()
        return self._bus.inbox.fresh(TaskState, time.monotonic())

    def vpn(self) -> VpnState | None:
        self._catch_up()
        return self._bus.inbox.fresh(VpnState, time.monotonic())

    def health(self) -> tuple[bool, dict[str, Any]]:
        self._catch_up()
        return core.health(self._bus.inbox, time.monotonic())

    # -------------------------------------------------------------- the owner

    async def change(self, decide: Callable[[core.Owner], core.Owner]) -> core.Owner:
        """Take a wish: on disk first, then on the bus."""
        async with self._owner_lock:
            wanted = decide(self._owner)
            if wanted != self._owner:
                await asyncio.to_thread(save_owner, self._owner_path, wanted)
                self._owner = wanted
                self._publish()
                self._tell()
        return self._owner

    async def prune(self) -> None:
        """Forget the stops of attempts that are gone."""
        tasks = self.tasks()
        if core.pruned(self._owner, tasks) is not self._owner:
            await self.change(lambda owner: core.pruned(owner, tasks))

    # -------------------------------------------------------------- the pages

    def _tell(self) -> None:
        self._page = b""
        self._news.set()
        self._news = asyncio.Event()

    def page(self) -> bytes:
        """The page's content as JSON: made once for all that ask."""
        if not self._page:
            self._page = msgspec.json.encode(
                core.page(
                    self._bus.inbox,
                    self._owner,
                    self._samples,
                    self._history,
                    time.monotonic(),
                    time.time(),
                )
            )
        return self._page

    async def events(self) -> AsyncIterator[bytes]:
        """For one page: its content at once and at every change, and what tasks write."""
        self.pages += 1
        self._opened.set()
        self._catch_up()
        seen: dict[str, int] = {}
        try:
            while not self.closed:
                news = self._news
                yield _event("state", self.page())
                for event in self._log_events(seen):
                    yield event
                await news.wait()
                await asyncio.sleep(GATHER_S)
        finally:
            self.pages -= 1

    def _log_events(self, seen: dict[str, int]) -> list[bytes]:
        events = []
        for name, tail in self._tails.items():
            if tail.position > seen.get(name, 0):
                parts = tail.since(seen.get(name, 0))
                fresh = name not in seen
                seen[name] = tail.position
                body = {"task": name, "fresh": fresh, "parts": parts}
                events.append(_event("log", msgspec.json.encode(body)))
        return events

    async def follow(self) -> None:
        """Read logs and history while a page is open; until cancelled."""
        asked_s = 0.0
        while True:
            if self.pages == 0:
                self._logs.close()
                self._tails.clear()
                self._opened.clear()
                await self._opened.wait()
            now_s = time.monotonic()
            if now_s - asked_s >= HISTORY_S:
                asked_s = now_s
                self._history = await self.history(Search())
            tasks = self.tasks()
            if tasks is not None:
                names = [task.directory for task in tasks.tasks if core.has_output(task)]
                self._take_logs(await asyncio.to_thread(self._logs.look, names))
            await asyncio.sleep(LOOK_S)

    async def history(self, search: Search) -> dict[str, Any] | None:
        """A page of the tasks that ended; None: it can't be read at the moment."""
        return await asyncio.to_thread(look, self._database, search)

    def _take_logs(self, added: dict[str, list[Part]]) -> None:
        """`added` names every task that is followed."""
        self._tails = {
            name: self._tails.get(name) or core.LogTail(TAIL_CHARACTERS) for name in added
        }
        for name, parts in added.items():
            for stream, text in parts:
                self._tails[name].add(stream, text)
        if any(added.values()):
            self._tell()

    def close(self) -> None:
        """Ends every page's stream."""
        self.closed = True
        self._tell()
        self._logs.close()


def _event(name: str, body: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"
