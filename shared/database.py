"""SQLite as each writer uses it: opened whole or not at all, migrated forward, WAL.

A database is an index of something else here, so one that is broken is set aside, with a message,
and begun anew; one of a newer program is refused. A file that is merely busy, or a full disk, is
no fault of the file: sqlite3.OperationalError passes through.
"""

import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from shared.settings import SettingsError

BUSY_S = 5.0  # a reader holds no lock longer
SYNCHRONOUS = ("NORMAL", "FULL")
PARTS = ("", "-wal", "-shm")


class NewerDatabaseError(SettingsError):
    """A later version of this program wrote the file: it is left as it is, and the process stays
    down."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"{path} has version {found}, this program knows {known}: update it,"
            " or move the file away"
        )
        self.version = found


def open_database(
    path: Path, migrations: Sequence[str], log: logging.Logger, synchronous: str = "FULL"
) -> sqlite3.Connection:
    """The database at `path`, its schema at version len(migrations); any thread may use it, one at
    a time. Statements commit one by one but inside BEGIN … COMMIT or `with`."""
    try:
        return _open(path, migrations, synchronous)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as err:
        set_aside(path, err, log)
        return _open(path, migrations, synchronous)


def set_aside(path: Path, why: sqlite3.DatabaseError, log: logging.Logger) -> None:
    """Rename a broken database, so that a new one can be begun and a person can look at it."""
    mark = f".broken-{time.time_ns()}"
    for part in PARTS:
        file = path.with_name(path.name + part)
        if file.exists():
            file.rename(file.with_name(file.name + mark))
    log.error("%s is broken (%s): set aside as %s%s, and begun anew", path, why, path.name, mark)


def _open(path: Path, migrations: Sequence[str], synchronous: str) -> sqlite3.Connection:
    if synchronous not in SYNCHRONOUS:
        raise ValueError(f"synchronous is {synchronous!r}, not one of {SYNCHRONOUS}")
    database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):  # before anything is written to it
            raise NewerDatabaseError(path, version, len(migrations))
        complaint = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if complaint != "ok":
            raise sqlite3.DatabaseError(complaint)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"PRAGMA synchronous = {synchronous}")
        for number, script in enumerate(migrations[version:], version + 1):
            database.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
    except (sqlite3.Error, NewerDatabaseError):
        database.close()
        raise
    return database

