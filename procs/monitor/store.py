"""`lib/load.db`: the samples behind the charts. Nothing else is kept there.

Table `samples`: one row for each (resolution_s, at_unix_s), the columns named as in HostLoad;
`cores_pct` is a byte for each core, NULL on a machine with too many. Resolution 1 is kept an hour,
10 a day, 60 a week; the coarser rows are averages of the finer (the network's counters: the
highest). Readers open it with mode=ro, one connection a query.
The samples of GPUs, in tables of their own, are gpu_store.py's.
"""

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from procs.monitor import gpu_store
from shared.database import open_database, set_aside
from shared.messages import GpuSample, HostLoad

KEEP_S = {1: 3600, 10: 24 * 3600, 60: 7 * 24 * 3600}  # resolution → age: 22,320 rows
LARGEST_BYTES = 45_000_000  # SQLite itself refuses to grow past it; its journal has 4 MB more
MOST_CORES = 256  # beside as many GPUs as are kept, a week stays below it
CACHE_KIB = 256  # the writer touches a few pages; each process counts its megabytes
CLOCK_SLACK_S = 60  # a row further ahead was written before the clock was set back

FIRST = (
    "cpu_pct", "memory_pct", "memory_used_bytes", "swap_pct", "disk_free_bytes", "load_1m",
    "pressure_cpu_pct", "pressure_memory_pct", "pressure_io_pct",
)  # fmt: skip
HIGHEST = ("disk_total_bytes", "network_received_bytes", "network_sent_bytes")
LATER = ("tasks_cpu_pct", "tasks_memory_bytes", "temperature_c")
AVERAGED = FIRST + LATER
COLUMNS = (*AVERAGED, *HIGHEST, "cores_pct")
MIGRATIONS = (
    "CREATE TABLE samples (resolution_s INTEGER NOT NULL, at_unix_s INTEGER NOT NULL"
    + "".join(f", {name} REAL" for name in FIRST + HIGHEST)
    + ", PRIMARY KEY (resolution_s, at_unix_s)) WITHOUT ROWID",
    gpu_store.MIGRATION,
    "".join(f"ALTER TABLE samples ADD COLUMN {name} REAL; " for name in LATER)
    + "ALTER TABLE samples ADD COLUMN cores_pct BLOB",
)
TABLES = ("samples", "gpu_samples")

Sample = tuple[int, HostLoad | GpuSample]  # the wall clock's second, the reading


class StoreError(Exception):
    """The samples could not be written now: the disk is full, or the file is locked."""


class Store:
    """The one writer; all of it in one thread."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path, self._log = path, log
        self._database = self._open()

    def write(self, samples: Sequence[Sample]) -> None:
        """One transaction: the samples, the averages they belong to, and what is too old goes."""
        try:
            _write(self._database, samples)
        except sqlite3.OperationalError as err:
            self._make_room(samples)
            raise StoreError(str(err)) from err
        except sqlite3.DatabaseError as err:
            self._database.close()
            set_aside(self._path, err, self._log)
            self._database = self._open()
            _write(self._database, samples)

    def _make_room(self, samples: Sequence[Sample]) -> None:
        """What is too old would have gone after the samples came, which they can't: it goes now."""
        with suppress(sqlite3.Error), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            _thin(self._database, max(at for at, _ in samples))

    def _open(self) -> sqlite3.Connection:
        try:
            database = open_database(self._path, MIGRATIONS, self._log, "NORMAL")
        except sqlite3.OperationalError as err:
            raise StoreError(f"{self._path}: {err}") from err
        database.create_aggregate("avg_cores", 1, Cores)  # type: ignore[arg-type]  # not of integers
        gpu_store.forget(database)
        database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {LARGEST_BYTES // page_bytes}")
        return database

    def close(self) -> None:
        self._database.close()


def _write(database: sqlite3.Connection, samples: Sequence[Sample]) -> None:
    with database:
        database.execute("BEGIN IMMEDIATE")
        hosts = [(at, load) for at, load in samples if isinstance(load, HostLoad)]
        gpus = [(at, gpu) for at, gpu in samples if isinstance(gpu, GpuSample)]
        _insert(database, hosts)
        _average(database, hosts)
        if gpus:
            gpu_store.write(database, gpus, KEEP_S)
        _thin(database, max(at for at, _ in samples))


def _insert(database: sqlite3.Connection, samples: Sequence[tuple[int, HostLoad]]) -> None:
    marks = ", ".join("?" * (len(COLUMNS) + 1))
    database.executemany(
        f"INSERT OR REPLACE INTO samples (resolution_s, at_unix_s, {', '.join(COLUMNS)})"
        f" VALUES (1, {marks})",
        [(at, *_values(load)) for at, load in samples],
    )


def _values(load: HostLoad) -> list[float | bytes | None]:
    figures = [getattr(load, name) for name in AVERAGED + HIGHEST]
    cores = bytes(load.cores_pct) if len(load.cores_pct) <= MOST_CORES else None
    return [*figures, cores]


class Cores:
    """An average for SQLite: of each core, over those rows that have as many as the last."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []

    def step(self, row: bytes | None) -> None:
        if row is not None:
            self._rows.append(row)

    def finalize(self) -> bytes | None:
        rows = [row for row in self._rows if len(row) == len(self._rows[-1])]
        if not rows:
            return None
        return bytes(round(sum(core) / len(rows)) for core in zip(*rows, strict=True))


def _average(database: sqlite3.Connection, samples: Sequence[tuple[int, HostLoad]]) -> None:
    """Make each coarser row that a sample falls into, anew from what is there of it."""
    figures = [f"avg({name})" for name in AVERAGED] + [f"max({name})" for name in HIGHEST]
    figures.append("avg_cores(cores_pct)")
    finer = 1
    for coarser in sorted(KEEP_S)[1:]:
        for start in {at - at % coarser for at, _ in samples}:
            database.execute(
                f"INSERT OR REPLACE INTO samples (resolution_s, at_unix_s, {', '.join(COLUMNS)})"
                f" SELECT ?, ?, {', '.join(figures)} FROM samples"
                " WHERE resolution_s = ? AND at_unix_s >= ? AND at_unix_s < ?",
                (coarser, start, finer, start, start + coarser),
            )
        finer = coarser


def _thin(database: sqlite3.Connection, now_unix_s: int) -> None:
    """Two ranges of the key: joined by OR, SQLite would look at every row."""
    for table in TABLES:
        for resolution, age in KEEP_S.items():
            for condition, at in (
                ("at_unix_s < ?", now_unix_s - age),
                ("at_unix_s > ?", now_unix_s + CLOCK_SLACK_S),
            ):
                database.execute(
                    f"DELETE FROM {table} WHERE resolution_s = ? AND {condition}", (resolution, at)
                )
