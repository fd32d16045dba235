"""`lib/process.json`: restarts and since when, across the watchdog's own restarts."""

import logging
import queue
import threading
from pathlib import Path

import msgspec

from procs.watchdog.core import Record
from shared.files import write_atomic

LAST_WRITE_S = 1.0


class RecordFile:
    """Reads at start; writes in a thread, since a disk that hangs must not stop the beat."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path, self._log = path, log
        self._waiting: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="record", daemon=True)
        self._thread.start()

    def read(self) -> Record:
        """What was written last; a broken file is said and replaced by what comes."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()
        except ValueError as err:
            self._log.error("%s is broken (%s): restarts are counted from zero", self._path, err)
            return Record()

    def save(self, record: Record) -> None:
        self._waiting.put(record)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(LAST_WRITE_S)

    def _work(self) -> None:
        while (record := self._waiting.get()) is not None:
            try:
                write_atomic(self._path, msgspec.json.encode(record))
            except OSError as err:
                self._log.error("%s can't be written: %s", self._path, err)
