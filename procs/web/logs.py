"""The live output of held tasks: reads each task's log file while somebody looks at the page."""

import os
from collections.abc import Iterable
from pathlib import Path

from procs.web.core import LogText
from shared.taskdir import LOG, TASKS, TaskKey
from shared.tasklog import HEADER, MIB, WORKER, LogReader

READ_BYTES = 2 * MIB  # of one log at one look
BEHIND_BYTES = MIB  # a look that read so much: a flood is skipped over, not chased
MOST_TASKS = 100
SKIPPED = "\n… part of the output is not shown here …\n"

Part = tuple[int, str]  # stream, text


class Follower:
    """One task's log, from near its end on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: LogReader | None = None
        self._text = LogText()

    def look(self) -> list[Part]:
        """What came since the last look."""
        if self._reader is None:
            if not self._path.exists():
                return []
            self._reader = LogReader(self._path, _start(self._path))
        try:
            records = self._reader.read(READ_BYTES)
        except OSError:  # not the keeper's file: a link, or a disk that fails
            return []
        parts = [(r.stream, self._text.of(r.stream, r.data)) for r in records]
        if sum(len(r.data) for r in records) > BEHIND_BYTES and self._skip(self._reader):
            parts.append((WORKER, SKIPPED))
        return parts

    def _skip(self, reader: LogReader) -> bool:
        start = _start(self._path)
        if start <= reader.next_sequence:
            return False
        reader.close()
        self._reader = LogReader(self._path, start)
        return True

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _start(path: Path) -> int:
    """The sequence of a record at most 2 MiB before the end: a record begins each MiB."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        offset = max(0, os.fstat(descriptor).st_size // MIB - 1) * MIB
        raw = os.pread(descriptor, HEADER.size, offset)
    finally:
        os.close(descriptor)
    return int(HEADER.unpack(raw)[4]) if offset and len(raw) == HEADER.size else 0


class Logs:
    """Every followed task; used by one thread at a time."""

    def __init__(self, home: Path) -> None:
        self._tasks = home / TASKS
        self._followers: dict[str, Follower] = {}

    def look(self, directories: Iterable[str]) -> dict[str, list[Part]]:
        """Follow these and no others; what each wrote since the last look."""
        wanted = [name for name in directories if TaskKey.parse(name)][:MOST_TASKS]
        for name in set(self._followers) - set(wanted):
            self._followers.pop(name).close()
        for name in wanted:
            if name not in self._followers:
                self._followers[name] = Follower(self._tasks / name / LOG)
        return {name: follower.look() for name, follower in self._followers.items()}

    def close(self) -> None:
        self.look(())
