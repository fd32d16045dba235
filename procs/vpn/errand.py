"""One piece of blocking work at a time, in a thread; its result wakes the loop by a descriptor.
The thread dies with the process. What the work did not translate is raised in the loop."""

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

R = TypeVar("R")


class Errand(Generic[R]):
    """`start` and `result` belong to the loop's thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._done: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.began_s: float | None = None  # of the one under way

    def fileno(self) -> int:
        return self._wake

    def start(self, work: Callable[[], R], now_s: float) -> None:
        if self.began_s is not None:
            raise RuntimeError(f"{self._name}: one at a time")
        self.began_s = now_s
        threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True).start()

    def result(self) -> R | None:
        """What it brought, once it is back; None: it is under way, or there is none."""
        try:
            os.eventfd_read(self._wake)
            value, error = self._done.get_nowait()
        except (BlockingIOError, Empty):
            return None
        self.began_s = None
        if error is not None:
            raise error
        return value

    def _run(self, work: Callable[[], R]) -> None:
        try:
            self._done.put((work(), None))
        except BaseException as err:  # for the loop to raise: the process ends
            self._done.put((None, err))
            raise
        finally:
            os.eventfd_write(self._wake, 1)
