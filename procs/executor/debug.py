"""`debug/<id>.<attempt>/`: what is left of an attempt that failed, for a person to look at.

Its output as it was, the engine's view of its container, its run record, its report; never a
secret: those are gone before. For DEBUG_RETENTION hours and 2 GiB in all, the oldest out first.
Nothing depends on it: what can't be kept is removed as if nobody had asked.
"""

import json
import logging
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from procs.executor.attempt import Attempt
from procs.executor.collect import BLOCK_BYTES, SMALLEST_ENTRY_BYTES
from procs.executor.walk import TooManyEntriesError, walk
from shared.files import remove_tree
from shared.messages import TaskPhase
from shared.taskdir import DEBUG, GIB, OUTPUT, REPORT, RUN, TaskKey

log = logging.getLogger("executor")

INSPECT = "inspect.json"
MOST_BYTES = 2 * GIB
LOOK_EACH_S = 3600.0  # while there is something
FOLDER_MODE = 0o700  # what a task wrote may hold what it was trusted with
WORTH = frozenset(
    {TaskPhase.FAILED, TaskPhase.TIMED_OUT, TaskPhase.OUT_OF_MEMORY, TaskPhase.OUT_OF_DISK}
)


class Debug:
    """Used by jobs of several threads; `is_due` is the loop's: is it to be trimmed now?"""

    def __init__(self, home: Path, retention_h: float) -> None:
        self._folder = home / DEBUG
        self._retention_s = retention_h * 3600
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}  # by folder: not to be counted each hour
        self._was_full = False
        self.due_s = 0.0

    def is_due(self, now_s: float, *, disk_full: bool) -> bool:
        """At the start, each hour while there is something, and when the disk has run full."""
        if disk_full and not self._was_full and self.due_s < math.inf:
            self.due_s = now_s
        self._was_full = disk_full
        return now_s >= self.due_s

    def wants(self, attempt: Attempt) -> bool:
        report = attempt.report
        return self._retention_s > 0 and report is not None and report.phase in WORTH

    def keep(self, attempt: Attempt, inspected: dict[str, Any] | None) -> None:
        """Take it over. Killed in between, the next life does it again from the start; done
        twice it is as done once."""
        place = self._folder / attempt.key.directory
        with self._lock:
            self._sizes.pop(place.name, None)
            try:
                self._move(attempt.directory, place, inspected)
            except OSError as err:
                log.warning("%s: its debug data is not kept whole: %s", place.name, err)
        self.trim()

    def _move(self, directory: Path, place: Path, inspected: dict[str, Any] | None) -> None:
        self._folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        place.mkdir(mode=FOLDER_MODE, exist_ok=True)
        if inspected is not None:
            (place / INSPECT).write_text(json.dumps(inspected, indent=1))
        for name in (RUN, REPORT):
            if (directory / name).exists():
                shutil.copyfile(directory / name, place / name)
        if (directory / OUTPUT).exists():
            remove_tree(place / OUTPUT)  # of an older task of that name
            (directory / OUTPUT).rename(place / OUTPUT)

    def trim(self) -> None:
        """Remove what is too old or too much."""
        with self._lock:
            try:
                self._trim()
            except OSError as err:
                log.warning("debug data is not trimmed: %s", err)
            self.due_s = time.monotonic() + LOOK_EACH_S if self._sizes else math.inf

    def _trim(self) -> None:
        if not self._folder.exists():
            return
        most = min(MOST_BYTES, shutil.disk_usage(self._folder).free)  # never the last room
        oldest_unix_s = time.time() - self._retention_s
        found = [p for p in self._folder.iterdir() if TaskKey.parse(p.name)]
        names = {place.name for place in found}
        self._sizes = {name: size for name, size in self._sizes.items() if name in names}
        held = 0
        for place in sorted(found, key=_kept_unix_s, reverse=True):
            size = self._size_bytes(place)
            if held + size > most or _kept_unix_s(place) <= oldest_unix_s:
                remove_tree(place)
                del self._sizes[place.name]
            else:
                held += size

    def _size_bytes(self, place: Path) -> int:
        if place.name not in self._sizes:
            self._sizes[place.name] = _disk_bytes(place)
        return self._sizes[place.name]


def _kept_unix_s(place: Path) -> float:
    return place.lstat().st_mtime


def _disk_bytes(place: Path) -> int:
    try:
        return sum(
            max(found.status.st_blocks * BLOCK_BYTES, SMALLEST_ENTRY_BYTES)
            for found in walk(place)
        )
    except TooManyEntriesError:
        return MOST_BYTES + 1
