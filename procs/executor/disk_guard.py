"""Looks at what running tasks have on disk: the sooner, the more may have been written.

One look a tick at the file system's free space says how much that is at most; a task whose
limit it may reach is looked at at once, any other each LOOK_S. One at its limit is ended here,
hard and through the kernel: grace would be time to write, and the engine may be away.
The threads sleep while nothing runs. What becomes of the task is the loop's.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from procs.executor.attempt import Attempt
from procs.executor.collect import SMALLEST_ENTRY_BYTES, TooLargeError, disk_use_bytes
from procs.executor.walk import MovedError
from shared import sentences
from shared.messages import TaskPhase
from shared.sentences import Said
from shared.taskdir import OUTPUT, TaskKey

log = logging.getLogger("executor")

TICK_S = 0.2  # a fast disk takes half a GiB in it
LOOK_S = 5.0
REST_FACTOR = 2.0  # looks at one task may cost a third of a core, and only while it is in danger
LOOKERS = 4  # one that counts a wide tree keeps the others waiting no longer than it must
MOST_FAULTS = 5  # looks in a row that a task has spoilt by moving directories deep in its tree


@dataclass(frozen=True)
class Full:
    """A task was found at its limit, or does not let itself be measured, and was ended."""

    key: TaskKey
    said: Said[TaskPhase]
    at_ns: int  # monotonic, before it was ended


@dataclass(frozen=True)
class Room:
    """What the file system has left."""

    free_bytes: int
    free_inodes: int


def written_bytes(before: Room, after: Room) -> int:
    """What can have been written in between, by anybody; an inode counts as what it costs."""
    blocks = max(before.free_bytes - after.free_bytes, 0)
    inodes = max(before.free_inodes - after.free_inodes, 0)
    return blocks + inodes * SMALLEST_ENTRY_BYTES


@dataclass
class Known:
    """What is known of one task's use."""

    used_bytes: int = 0
    written_bytes: int = 0  # by anybody, since its last look began
    look_at_s: float = 0.0
    rest_until_s: float = 0.0
    is_looked_at: bool = False
    faults: int = 0


def is_due(known: Known, limit_bytes: int, now_s: float) -> bool:
    """A look when its time has come; before, when half of what it has left may be gone."""
    if known.is_looked_at or now_s < known.rest_until_s:
        return False
    return now_s >= known.look_at_s or 2 * known.written_bytes >= limit_bytes - known.used_bytes


class DiskGuard:
    """`follow`, `leave`, `full`, `used_bytes` belong to the loop's thread."""

    def __init__(self, tasks: Path, signal_keeper: Callable[[Attempt, int], bool]) -> None:
        self._tasks = tasks
        self._signal_keeper = signal_keeper
        self._lock = threading.Lock()  # of _followed, and of what is known of each
        self._followed: dict[TaskKey, tuple[Attempt, Known]] = {}
        self._room = Room(0, 0)
        self._any = threading.Event()
        self._due: SimpleQueue[tuple[Attempt, Known] | None] = SimpleQueue()
        self._full: SimpleQueue[Full] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closed = False
        self._threads = 0
        self._error: BaseException | None = None

    def fileno(self) -> int:
        return self._wake

    def follow(self, attempt: Attempt) -> None:
        """It runs; said once or again."""
        if attempt.key in self._followed or attempt.grant is None:
            return
        if not self._threads:
            self._begin()
        with self._lock:
            if not self._followed:
                self._room = _room(self._tasks)
            self._followed[attempt.key] = (attempt, Known())
        self._any.set()

    def leave(self, key: TaskKey) -> None:
        with self._lock:
            self._followed.pop(key, None)
            if not self._followed:
                self._any.clear()

    def used_bytes(self, key: TaskKey) -> int:
        """At its last look."""
        _, known = self._followed.get(key, (None, Known()))
        return known.used_bytes

    def full(self) -> Iterator[Full]:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        if self._error is not None:  # what was not handled ends the process
            raise self._error
        while True:
            try:
                yield self._full.get_nowait()
            except Empty:
                return

    def close(self) -> None:
        self._is_closed = True
        self._any.set()

    # -------------------------------------------------------------- in its threads

    def _begin(self) -> None:
        work = [self._tick_on, *[self._look_on] * LOOKERS]
        self._threads = len(work)
        for each in work:
            threading.Thread(target=partial(self._run, each), name="disk", daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as err:
            self._error = err
            os.eventfd_write(self._wake, 1)
            raise

    def _tick_on(self) -> None:
        while self._any.wait() and not self._is_closed:
            self._tick(time.monotonic())
            time.sleep(TICK_S)
        for _ in range(LOOKERS):
            self._due.put(None)

    def _tick(self, now_s: float) -> None:
        room = _room(self._tasks)
        with self._lock:
            written, self._room = written_bytes(self._room, room), room
            for one in self._followed.values():
                attempt, known = one
                known.written_bytes += written
                if is_due(known, _limit(attempt), now_s):
                    known.is_looked_at, known.written_bytes = True, 0
                    self._due.put(one)

    def _look_on(self) -> None:
        while (due := self._due.get()) is not None:
            self._look(*due)

    def _look(self, attempt: Attempt, known: Known) -> None:
        began_s = time.monotonic()
        limit, used, said = _limit(attempt), known.used_bytes, None
        faults = 0
        try:
            used = _use(attempt.directory / OUTPUT, limit)
        except TooLargeError as err:
            said = err.said
        except MovedError:
            faults = known.faults + 1
        except OSError as err:  # looked at again, and at the end
            log.warning("%s: its use of disk is not known: %s", attempt.key.directory, err)
        ended_s = time.monotonic()
        with self._lock:
            known.used_bytes, known.faults, known.is_looked_at = used, faults, False
            known.rest_until_s = ended_s + REST_FACTOR * (ended_s - began_s)
            known.look_at_s = known.rest_until_s if faults else ended_s + LOOK_S
        if used >= limit:
            said = sentences.OUT_OF_DISK.say(used=used, limit=limit)
        elif faults >= MOST_FAULTS:
            said = sentences.OUTPUT_MOVES.say()
        if said is not None:
            self._end(attempt, said)

    def _end(self, attempt: Attempt, said: Said[TaskPhase]) -> None:
        """Told first, so that nothing that follows is taken for an end of its own."""
        self._full.put(Full(attempt.key, said, time.monotonic_ns()))
        os.eventfd_write(self._wake, 1)
        self._signal_keeper(attempt, signal.SIGPWR)


def _use(output: Path, limit_bytes: int) -> int:
    """At its limit it is looked at twice: a file that is moved or replaced while we look may
    have been counted for two."""
    used = disk_use_bytes(output, limit_bytes)
    return disk_use_bytes(output, limit_bytes) if used >= limit_bytes else used


def _limit(attempt: Attempt) -> int:
    return attempt.grant.disk_bytes if attempt.grant else 0


def _room(path: Path) -> Room:
    found = os.statvfs(path)
    return Room(found.f_bfree * found.f_frsize, found.f_ffree)
