"""Wakes those who wait for a change. Says only that something changed, never what."""

import asyncio


class Bells:
    """Named bells. Take the event first, then look, then wait: no ring is missed."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}

    def listen(self, name: str) -> asyncio.Event:
        return self._events.setdefault(name, asyncio.Event())

    def ring(self, name: str) -> None:
        event = self._events.pop(name, None)
        if event is not None:
            event.set()


async def wait(event: asyncio.Event, timeout_s: float) -> bool:
    """True: it rang; False: `timeout_s` passed."""
    try:
        return await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
