"""Blocking work, in threads: one job at a time for each attempt, in order; results come back
to the loop through a descriptor that wakes it."""

import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

R = TypeVar("R")
THREADS = 16  # pulls may hold half of them for minutes; starts, stops and looks need the rest


@dataclass
class _Lane(Generic[R]):
    waiting: list[Callable[[], R]] = field(default_factory=list)
    busy: bool = False


class Jobs(Generic[R]):
    """`submit` and `results` belong to the loop's thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="job")
        self._lanes: dict[Hashable, _Lane[R]] = {}
        self._done: SimpleQueue[tuple[Hashable, Future[R]]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._wake

    def submit(self, lane: Hashable, work: Callable[[], R]) -> None:
        """Run `work` after all earlier work of the same lane."""
        self._lanes.setdefault(lane, _Lane()).waiting.append(work)
        self._pump(lane)

    def is_busy(self, lane: Hashable) -> bool:
        return lane in self._lanes

    def _pump(self, lane: Hashable) -> None:
        state = self._lanes[lane]
        if state.busy:
            return
        if not state.waiting:
            del self._lanes[lane]
            return
        state.busy = True
        self._pool.submit(state.waiting.pop(0)).add_done_callback(partial(self._finished, lane))

    def _finished(self, lane: Hashable, future: Future[R]) -> None:
        self._done.put((lane, future))
        os.eventfd_write(self._wake, 1)

    def results(self) -> list[tuple[Hashable, R]]:
        """What has finished; an exception that the work did not translate is raised here."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return []
        found: list[tuple[Hashable, R]] = []
        while True:
            try:
                lane, future = self._done.get_nowait()
            except Empty:
                return found
            self._lanes[lane].busy = False
            self._pump(lane)
            found.append((lane, future.result()))

    def close(self) -> None:
        """Don't wait for what hangs: the next life goes on from the directories."""
        self._pool.shutdown(wait=False, cancel_futures=True)
