"""Writes a task's log as the keeper does, record by record, for readers under test."""

import time
from pathlib import Path

from shared.tasklog import HEADER, MAGIC, MIB, MOST_DATA_BYTES, STDOUT, VERSION


class KeeperLog:
    """Appends records to `path`; none crosses a MiB of the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._sequence = 0

    def write(self, data: bytes, stream: int = STDOUT) -> None:
        while data:
            room = MIB - self._file.tell() % MIB
            if room <= HEADER.size:
                self._file.write(bytes(room))
                continue
            part = data[: min(room - HEADER.size, MOST_DATA_BYTES)]
            header = HEADER.pack(
                len(part), stream, VERSION, MAGIC, self._sequence, time.time_ns()
            )
            self._file.write(header + part)
            self._sequence += 1
            data = data[len(part) :]

    def close(self) -> None:
        self._file.close()
