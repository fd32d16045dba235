"""Every entry of a hostile tree, at any depth, without a link followed.

By directory descriptors, at most KEPT_OPEN of them: a directory that was closed on the way down is
opened again as `..` of the one below it, and only if it still is the one that it was.
"""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.files import DIRECTORY_FLAGS

KEPT_OPEN = 16
MOST_ENTRIES = 1_000_000
MOST_NAMES_BYTES = 64 * 2**20  # of names that are held at once: a task chooses them 1 KB long


class TooManyEntriesError(Exception):
    """The tree has more entries than were asked for, or longer names than can be held."""


class MovedError(OSError):
    """A directory was moved while what lies deep below it was walked."""


@dataclass(frozen=True)
class Found:
    """An entry: the descriptor of its directory, its name there, its stat; depth 0: in the root.
    Valid until the next is taken."""

    directory: int
    name: str
    status: os.stat_result
    depth: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


@dataclass
class _Bounds:
    """What may still be noted: in all, and at once."""

    entries: int
    names_bytes: int

    def note(self, name: str) -> None:
        self.entries -= 1
        self.names_bytes -= sys.getsizeof(name)
        if min(self.entries, self.names_bytes) < 0:
            raise TooManyEntriesError

    def forget(self, name: str) -> None:
        self.names_bytes += sys.getsizeof(name)


@dataclass
class _Level:
    """A directory on the way down, and what of it has not been looked at."""

    descriptor: int
    identity: tuple[int, int]
    names: list[str] = field(default_factory=list)
    is_open: bool = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            os.close(self.descriptor)


def walk(
    root: Path, most_entries: int = MOST_ENTRIES, *, whole: bool = False
) -> Iterator[Found]:
    """Each entry below root, a directory before what is in it, by name. What a running task
    removes or moves meanwhile is left out; `whole`: MovedError where that cuts the walk short."""
    try:
        levels = [_level(os.open(root, DIRECTORY_FLAGS))]
    except FileNotFoundError:
        return
    try:
        bounds = _Bounds(most_entries, MOST_NAMES_BYTES)
        _list(levels[0], bounds)
        while levels:
            if not levels[-1].names:
                _leave(levels, whole=whole)
                continue
            found = _next(levels, bounds)
            if found is None:
                continue
            yield found
            if found.is_directory and _enter(levels, found):
                _list(levels[-1], bounds)
    finally:
        for level in levels:
            level.close()


def _level(descriptor: int) -> _Level:
    return _Level(descriptor, _identity(descriptor))


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _list(level: _Level, bounds: _Bounds) -> None:
    """Note the names in a directory."""
    with os.scandir(level.descriptor) as entries:
        for entry in entries:
            bounds.note(entry.name)
            level.names.append(entry.name)
    level.names.sort(reverse=True)


def _next(levels: list[_Level], bounds: _Bounds) -> Found | None:
    level = levels[-1]
    name = level.names.pop()
    bounds.forget(name)
    try:
        status = os.lstat(name, dir_fd=level.descriptor)
    except FileNotFoundError:
        return None
    return Found(level.descriptor, name, status, len(levels) - 1)


def _enter(levels: list[_Level], found: Found) -> bool:
    try:
        descriptor = os.open(found.name, DIRECTORY_FLAGS, dir_fd=found.directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    levels.append(_level(descriptor))
    if len(levels) > KEPT_OPEN:
        levels[-KEPT_OPEN].close()
    return True


def _leave(levels: list[_Level], *, whole: bool) -> None:
    """Up. Where the way up is not the way down any more, the rest of that way is left out."""
    below = levels.pop()
    try:
        if not levels or levels[-1].is_open:
            return
        descriptor = os.open("..", DIRECTORY_FLAGS, dir_fd=below.descriptor)
        if _identity(descriptor) == levels[-1].identity:
            levels[-1].descriptor, levels[-1].is_open = descriptor, True
            return
        os.close(descriptor)
        while levels:
            levels.pop().close()
        if whole:
            raise MovedError(errno.ESTALE, "directories move deep in it while it is looked at")
    finally:
        below.close()
