"""Writes a task's log as the keeper does: records with a header, none across a MiB."""

from pathlib import Path

from shared.tasklog import HEADER, MAGIC, MIB, MOST_DATA_BYTES, STDOUT, VERSION


class TaskLog:
    """Appends records to one file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._sequence = 0
        self._offset = 0

    def write(self, data: bytes, stream: int = STDOUT) -> None:
        with self._path.open("ab") as file:
            while data:
                room = MIB - self._offset % MIB
                if room <= HEADER.size:
                    file.write(b"\0" * room)
                    self._offset += room
                    continue
                part = data[: min(MOST_DATA_BYTES, room - HEADER.size)]
                header = HEADER.pack(len(part), stream, VERSION, MAGIC, self._sequence, 1)
                file.write(header + part)
                self._sequence += 1
                self._offset += HEADER.size + len(part)
                data = data[len(part) :]
