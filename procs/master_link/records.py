"""link.db from the event loop: one thread for all of it, so that no fsync stops the beat."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from procs.master_link.core import Attempt
from procs.master_link.store import Store, StoreFaultError, guarded, row_of
from shared.taskdir import TaskKey

FAULT_RETRY_S = 5.0
FLUSH_AFTER_S = 0.25  # a short task's statuses cost one commit with its end, not three

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("master_link")


class Records:
    """What is saved, is saved in the order of the calls."""

    def __init__(self, path: Path) -> None:
        self._pool = ThreadPoolExecutor(1, "link.db")
        self._path = path
        self._later: dict[TaskKey, Attempt] = {}
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.store = await self.run(Store.open, self._path)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: guarded(call, *args, **kwargs))

    async def save(self, *attempts: Attempt) -> None:
        """Durable when this returns."""
        for attempt in attempts:
            self._later.pop(attempt.key, None)
        await self.run(self.store.save, [row_of(attempt) for attempt in attempts])

    def save_later(self, attempt: Attempt) -> None:
        """Soon; many at once. For what a crash may repeat."""
        self._later[attempt.key] = attempt
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())

    async def _flush_later(self) -> None:
        while self._later:
            await asyncio.sleep(FLUSH_AFTER_S)
            try:
                await self.flush()
            except StoreFaultError as err:
                log.error("%s; tried again", err)
                await asyncio.sleep(FAULT_RETRY_S)

    async def flush(self) -> None:
        """What was left for later is durable when this returns."""
        attempts, self._later = self._later, {}
        try:
            await self.save(*attempts.values())
        except StoreFaultError:
            self._later = attempts | self._later
            raise

    def unsaved(self, task_id: str) -> dict[TaskKey, Attempt]:
        """What is newer than the database's rows."""
        return {key: a for key, a in self._later.items() if key.task_id == task_id}

    async def close(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait((self._flushing,))
        await self.flush()
        await self.run(self.store.close)
        self._pool.shutdown()
