"""Rings when a keeper writes into its run record. Only a bell: a change that it misses is found
by the look at the engine's list."""

import logging
from contextlib import suppress
from pathlib import Path

from inotify_simple import INotify, flags

from shared.taskdir import RUN, TaskKey

log = logging.getLogger("executor")


class Bells:
    """One watch for each attempt that runs; the kernel has few (max_user_watches)."""

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._keys: dict[int, TaskKey] = {}

    def fileno(self) -> int:
        return int(self._inotify.fileno())

    def hang(self, key: TaskKey, directory: Path) -> None:
        self.take_down(key)
        try:
            watch = self._inotify.add_watch(directory / RUN, flags.MODIFY | flags.CLOSE_WRITE)
        except OSError as err:
            log.warning("%s is looked at without a bell: %s", key.directory, err)
        else:
            self._keys[watch] = key

    def take_down(self, key: TaskKey) -> None:
        for watch in [watch for watch, rings_for in self._keys.items() if rings_for == key]:
            del self._keys[watch]
            with suppress(OSError):  # its file is gone, and the watch with it
                self._inotify.rm_watch(watch)

    def rung(self) -> set[TaskKey]:
        """Whose record has changed; everybody's, when some have been lost."""
        events = self._inotify.read(timeout=0)
        if any(event.mask & flags.Q_OVERFLOW for event in events):
            return set(self._keys.values())
        return {self._keys[event.wd] for event in events if event.wd in self._keys}

    def close(self) -> None:
        self._inotify.close()
