"""link.db and the reports from the event loop: one thread for all of it, so that no fsync stops
the beat."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from procs.master_link.core import Attempt
from procs.master_link.ledger import Ledger
from procs.master_link.reports import Reward
from procs.master_link.store import Store, StoreFaultError, guarded, row_of
from shared.taskdir import TaskKey

REPORTS = "reports"  # beside link.db
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
        self._writing: dict[asyncio.Future[None], tuple[Attempt, ...]] = {}
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.store = await self.run(Store.open, self._path)
        least_total = await self.run(self.store.last_total)
        self.ledger = await self.run(Ledger, self._path.with_name(REPORTS), least_total)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._submit(call, *args, **kwargs)

    def _submit(
        self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._pool, lambda: guarded(call, *args, **kwargs))

    async def save(self, *attempts: Attempt, earned: Reward | None = None) -> None:
        """Durable when this returns; begun, it is finished whatever becomes of the caller."""
        for attempt in attempts:
            self._later.pop(attempt.key, None)
        rows = [row_of(attempt) for attempt in attempts]
        writing = self._submit(self.store.save, rows, earned)
        self._writing[writing] = attempts
        writing.add_done_callback(self._written)
        await asyncio.shield(writing)

    def _written(self, writing: asyncio.Future[None]) -> None:
        attempts = self._writing.pop(writing)
        if isinstance(writing.exception(), StoreFaultError):
            self._later = {attempt.key: attempt for attempt in attempts} | self._later
            self._flush_soon()

    async def saved(self, attempt: Attempt) -> None:
        """What was left for later of it is durable when this returns."""
        if attempt.key in self._later:
            await self.flush()
        for writing, attempts in list(self._writing.items()):
            if attempt in attempts:
                await asyncio.shield(writing)

    def save_later(self, attempt: Attempt) -> None:
        """Soon; many at once. For what a crash may repeat."""
        self._later[attempt.key] = attempt
        self._flush_soon()

    def _flush_soon(self) -> None:
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
        if self._later:
            await self.save(*self._later.values())

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
