"""Blocking work, in threads: one job at a time for each lane, in order; results come back to the
loop through a descriptor that wakes it. The threads die with the process: a job that hangs in
the engine never keeps it from ending, and the next life goes on from the directories."""

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

R = TypeVar("R")


@dataclass
class _Lane(Generic[R]):
    waiting: list[Callable[[], R]] = field(default_factory=list)
    busy: bool = False


@dataclass(frozen=True)
class _Done(Generic[R]):
    lane: Hashable
    value: R | None = None
    error: BaseException | None = None
    is_last: bool = True  # of its job


class Jobs(Generic[R]):
    """`submit` and `results` belong to the loop's thread."""

    def __init__(self, threads: int, name: str) -> None:
        self._most_threads, self._name = threads, name
        self._threads = 0
        self._unfinished = 0
        self._todo: SimpleQueue[tuple[Hashable, Callable[[], R]] | None] = SimpleQueue()
        self._done: SimpleQueue[_Done[R]] = SimpleQueue()
        self._lanes: dict[Hashable, _Lane[R]] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._wake

    def submit(self, lane: Hashable, work: Callable[[], R]) -> None:
        """Run `work` after all earlier work of the same lane, and after its result was taken."""
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
        self._unfinished += 1
        if self._unfinished > self._threads and self._threads < self._most_threads:
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._todo.put((lane, state.waiting.pop(0)))

    def _work(self) -> None:
        while (job := self._todo.get()) is not None:
            lane, work = job
            try:
                self._tell(_Done(lane, work()))
            except BaseException as err:  # for the loop to raise: the process ends
                self._tell(_Done(lane, error=err))
                raise

    def post(self, lane: Hashable, value: R) -> None:
        """From a job's thread: a result before its last."""
        self._tell(_Done(lane, value, is_last=False))

    def _tell(self, done: _Done[R]) -> None:
        self._done.put(done)
        os.eventfd_write(self._wake, 1)

    def results(self) -> Iterator[tuple[Hashable, R]]:
        """What has finished. A lane goes on only when its result has been dealt with: the next
        job sees what the one before it found. What the work did not translate is raised here."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        while True:
            try:
                done = self._done.get_nowait()
            except Empty:
                return
            if done.error is not None:
                raise done.error
            yield done.lane, cast(R, done.value)
            if done.is_last:
                self._unfinished -= 1
                self._lanes[done.lane].busy = False
                self._pump(done.lane)

    def close(self) -> None:
        """Idle threads end; one that hangs is left behind."""
        for _ in range(self._threads):
            self._todo.put(None)
