"""What a stream brings, taken as it comes and stored in batches; one stream at a time for a thing.

A cut stream loses only what it had not brought, and who comes back is told where to go on only
after all that was brought is stored.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

MOST_WAITING = 8  # chunks of 256 KiB, for each stream
DRAIN_S = 2.0  # an older stream stores what it was brought in far less

T = TypeVar("T")
R = TypeVar("R")


class Inflow(Generic[T]):
    """A stream's messages, in batches."""

    def __init__(self, messages: AsyncIterator[T]) -> None:
        self._messages = messages
        self._waiting: list[T] = []
        self._some, self._room = asyncio.Event(), asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._some.set())

    async def _read(self) -> None:
        async for message in self._messages:
            self._waiting.append(message)
            self._some.set()
            if len(self._waiting) >= MOST_WAITING:
                self._room.clear()
                await self._room.wait()

    async def batch(self) -> list[T]:
        """At least one message; an empty list at the end of the stream."""
        await self._some.wait()
        batch, self._waiting = self._waiting, []
        self._room.set()
        if not self._reading.done():
            self._some.clear()
        elif not batch:
            self._reading.result()
        return batch

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        if not self._reading.cancelled():
            self._reading.exception()  # told already, or of no interest any more


class Lines:
    """Who brings what just now: the newest comer, once the one before has finished."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[object]] = {}

    async def clear(self, thing: Hashable) -> None:
        """Returns once nobody brings it; one that hangs is cut off."""
        task = self._tasks.get(thing)
        if task is None or task is asyncio.current_task():
            return
        await asyncio.wait((task,), timeout=DRAIN_S)
        if self._tasks.get(thing) is task:
            task.cancel()
            await asyncio.wait((task,))

    @contextmanager
    def bringing(self, thing: Hashable) -> Iterator[None]:
        """Right after `clear`, with nothing awaited in between."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks[thing] = task
        try:
            yield
        finally:
            if self._tasks.get(thing) is task:
                del self._tasks[thing]


async def in_any_case(work: Awaitable[R]) -> R:
    """Its result; a caller that is cancelled meanwhile still waits for its end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # nobody is there any more to be told
        raise
