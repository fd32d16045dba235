"""Whose chunk is next: each attempt in its turn, few at once.

So what is in memory and on the wire has a bound whatever is delivered, a cut costs little, and a
short log never waits for the whole of another task's archive.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

AT_ONCE = 2  # one is read while another is written; more only lie in buffers
PATIENCE_S = 1.0  # who is held up for so long by the master gives its turn to the others


class Turns:
    """A turn lasts from reading a chunk until the connection has taken it."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        await self._free.acquire()
        held = [self._free.release]

        def give_back() -> None:
            if held:
                held.pop()()

        timer = asyncio.get_running_loop().call_later(PATIENCE_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
