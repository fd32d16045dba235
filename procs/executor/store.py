"""`lib/executor.db`: every task's phases and the history, for the page and the command line.

An index only: the directories are the record. A thread of its own writes, so that a slow disk
never stops the beat. A broken database is set aside and begun anew.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from shared.database import open_database, set_aside
from shared.messages import HeldTask, PhaseAt, TaskPhase
from shared.taskdir import Report, TaskKey

log = logging.getLogger("executor")

KEPT_DAYS = 30
MOST_ROWS = 50_000
MOST_UNWRITTEN = 1000  # kept for when the disk has room again
TRIM_EACH_S = 3600.0
RETRY_S = 5.0  # what found the disk full, or the file locked, is tried again
HAS_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tasks'"
SHOWN_COMMAND = 500  # characters: a command may be megabytes

SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
  task_id TEXT NOT NULL, attempt INTEGER NOT NULL, directory TEXT NOT NULL,
  phase TEXT NOT NULL, phases TEXT NOT NULL, image TEXT NOT NULL, command TEXT NOT NULL,
  changed_unix_s REAL NOT NULL, accepted_unix_s REAL, started_unix_s REAL, finished_unix_s REAL,
  exit_code INTEGER, error TEXT, cause TEXT, run_s REAL, cpu_s REAL, memory_peak_bytes INTEGER,
  output_bytes INTEGER, output_files INTEGER,
  PRIMARY KEY (task_id, attempt)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tasks_by_time ON tasks (changed_unix_s);
"""
MIGRATIONS = (  # only ever added to; the first of them also mends a file that has lost its table
    SCHEMA,
    f"{SCHEMA} CREATE INDEX tasks_by_end ON tasks (finished_unix_s);",
)
UPSERT = """
INSERT INTO tasks (task_id, attempt, directory, phase, phases, image, command, changed_unix_s,
  accepted_unix_s, started_unix_s, finished_unix_s, exit_code, error, cause, run_s, cpu_s,
  memory_peak_bytes, output_bytes, output_files)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (task_id, attempt) DO UPDATE SET
  phase = excluded.phase, phases = excluded.phases, changed_unix_s = excluded.changed_unix_s,
  started_unix_s = excluded.started_unix_s, finished_unix_s = excluded.finished_unix_s,
  exit_code = excluded.exit_code, error = excluded.error, cause = excluded.cause,
  run_s = excluded.run_s, cpu_s = excluded.cpu_s,
  memory_peak_bytes = excluded.memory_peak_bytes, output_bytes = excluded.output_bytes,
  output_files = excluded.output_files
"""


TRIM = """
DELETE FROM tasks WHERE changed_unix_s < max(?, ifnull(
  (SELECT changed_unix_s FROM tasks ORDER BY changed_unix_s DESC LIMIT 1 OFFSET ?), 0))
"""


def open_if_possible(path: Path) -> sqlite3.Connection | None:
    """None: no room, or no reading of the disk now; that says nothing about the file."""
    try:
        connection = open_database(path, MIGRATIONS, log)
        if connection.execute(HAS_TABLE).fetchone():
            return connection
        connection.close()
        set_aside(path, sqlite3.DatabaseError("it has no table"), log)
        return open_database(path, MIGRATIONS, log)
    except sqlite3.OperationalError as err:
        log.error("history: %s can't be opened now: %s", path, err)
        return None


def row(held: HeldTask, accepted_unix_s: float, report: Report | None) -> tuple[object, ...]:
    """One attempt as the table has it."""
    phases = json.dumps([[p.phase, p.at_unix_s] for p in held.phases])
    command = _text(" ".join(held.command)[:SHOWN_COMMAND])
    head = (
        held.task_id, held.attempt, held.directory, held.phase, phases, held.image, command,
        time.time(), accepted_unix_s,
    )  # fmt: skip
    if report is None:
        started = next((p.at_unix_s for p in held.phases if p.phase is TaskPhase.RUNNING), None)
        return (*head, started, *[None] * 9)
    return (
        *head, report.started_unix_s, report.finished_unix_s, report.exit_code, _text(report.error),
        report.cause, report.run_s, report.cpu_s, report.memory_peak_bytes, report.output_bytes,
        report.output_files,
    )  # fmt: skip


def _text(words: str) -> str:
    """A name that a task chose need not be Unicode."""
    return words.encode(errors="replace").decode()


class Store:
    """Rows go to a thread; the newest of each attempt is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_if_possible(path)
        self._queue: SimpleQueue[tuple[object, ...] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="store", daemon=True)
        self._trim_due_s = 0.0
        self._unwritten: list[tuple[object, ...]] = []
        self._error: Exception | None = None
        self._phases = dict(self._read_phases())
        self._thread.start()

    def phases(self) -> dict[TaskKey, tuple[PhaseAt, ...]]:
        """The phases of the attempts that had not ended, as far as they were written, when the
        process began."""
        return self._phases

    def _read_phases(self) -> Iterator[tuple[TaskKey, tuple[PhaseAt, ...]]]:
        if self._connection is None:
            return
        rows = self._connection.execute(
            "SELECT task_id, attempt, phases FROM tasks WHERE finished_unix_s IS NULL"
        )
        for task_id, attempt, phases in rows:
            try:
                found = msgspec.json.decode(phases, type=tuple[tuple[TaskPhase, float], ...])
            except ValueError as err:
                log.error("history: the phases of %s.%s can't be read: %s", task_id, attempt, err)
                continue
            history = tuple(PhaseAt(phase=phase, at_unix_s=at) for phase, at in found)
            yield TaskKey(task_id, attempt), history

    def put(self, values: tuple[object, ...]) -> None:
        """What its thread did not handle is raised here: the process ends."""
        if self._error is not None:
            raise self._error
        self._queue.put(values)

    def _write_all(self) -> None:
        """In its thread."""
        try:
            while True:
                try:
                    first = self._queue.get(timeout=RETRY_S if self._unwritten else None)
                except Empty:
                    self._write([])
                    continue
                if first is None:
                    return
                self._write([first, *self._more()])
        except Exception as err:  # for the loop to raise
            self._error = err
            raise

    def _more(self) -> Iterable[tuple[object, ...]]:
        try:
            while (values := self._queue.get_nowait()) is not None:
                yield values
        except Empty:
            return
        self._queue.put(None)  # close() was called: write what there is, then end

    def _write(self, rows: list[tuple[object, ...]]) -> None:
        self._connection = self._connection or open_if_possible(self._path)
        rows = self._unwritten + rows
        self._unwritten = rows[-MOST_UNWRITTEN:]  # until they are
        if self._connection is None:
            return
        try:
            self._connection.execute("BEGIN")
            self._connection.executemany(UPSERT, rows)
            if time.monotonic() >= self._trim_due_s:
                self._connection.execute(TRIM, (time.time() - KEPT_DAYS * 86400, MOST_ROWS))
                self._trim_due_s = time.monotonic() + TRIM_EACH_S
            self._connection.execute("COMMIT")
            self._unwritten = []
        except sqlite3.Error as err:  # a full disk: the directories still have it all
            log.error("history: %d rows were not written: %s", len(rows), err)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(5)
        if self._connection is not None:
            self._connection.close()
