"""Writes the samples in a thread of its own: a disk that hangs must not stop the beat."""

import logging
import queue
import threading
from pathlib import Path

from procs.monitor.store import Sample, Store, StoreError
from shared.database import NewerDatabaseError

BATCH = 10  # seconds in one transaction: one each 10 s
WAITING_BATCHES = 6  # while the disk hangs; what comes after a minute of it is not kept
LAST_WRITE_S = 2.0  # at the end, for what is not written yet


class Writer:
    """Takes samples, never blocks. `newer_version` is set when the file may not be written."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self.newer_version: int | None = None
        self._path, self._log = path, log
        self._pending: list[Sample] = []
        self._seconds = 0
        self._batches: queue.Queue[list[Sample] | None] = queue.Queue(WAITING_BATCHES)
        self._store: Store | None = None
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False when the thread ended by an error of its own: then so should the process."""
        return self.newer_version is not None or self._thread.is_alive()

    def add(self, *samples: Sample) -> None:
        """All of one second."""
        self._pending += samples
        self._seconds += 1
        if self._seconds >= BATCH:
            self._hand_over(self._pending)
            self._pending, self._seconds = [], 0

    def _hand_over(self, batch: list[Sample] | None) -> None:
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            self._log.warning("%s: the disk hangs, samples are lost", self._path)

    def close(self) -> None:
        """Write what is pending, if the disk lets us."""
        if self._pending:
            self._hand_over(self._pending)
        self._hand_over(None)
        self._thread.join(LAST_WRITE_S)

    # -------------------------------------------------------------- in the thread

    def _work(self) -> None:
        batch: list[Sample] | None = []
        while batch is not None and self.newer_version is None:
            self._write(batch)
            batch = self._batches.get()
        if self._store is not None:
            self._store.close()

    def _write(self, batch: list[Sample]) -> None:
        """An empty batch opens the store, so that readers find it from the start."""
        try:
            self._store = self._store or Store(self._path, self._log)
            if batch:
                self._store.write(batch)
        except NewerDatabaseError as err:
            self._log.error("%s: no samples are kept", err)
            self.newer_version = err.version
        except StoreError as err:
            if not self._failing:
                self._log.error("samples are lost while this lasts: %s", err)
            self._failing = True
        else:
            self._failing = False
