"""The samples of GPUs in `lib/load.db`, beside those of the machine; store.py is their one caller.

Table `gpu_samples`: one row for each (resolution_s, at_unix_s, gpu), the columns named as in
GpuSample, None where the card told nothing; `gpus` has the UUID of each number. MIG's instances,
which come and go, are left out.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from shared.messages import GpuSample

MOST_GPUS = 24  # 32 MB for a week; of more, nothing is kept
COLUMNS = ("util_pct", "memory_used_bytes", "temperature_c", "power_w")
MIGRATION = (
    "CREATE TABLE gpus (number INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE);"
    "CREATE TABLE gpu_samples (resolution_s INTEGER NOT NULL, at_unix_s INTEGER NOT NULL,"
    " gpu INTEGER NOT NULL"
    + "".join(f", {name} REAL" for name in COLUMNS)
    + ", PRIMARY KEY (resolution_s, at_unix_s, gpu)) WITHOUT ROWID"
)

Sample = tuple[int, GpuSample]


def write(
    database: sqlite3.Connection, samples: Sequence[Sample], keep_s: Mapping[int, int]
) -> None:
    """Within the caller's transaction: the samples, and the averages they belong to."""
    told = [(at, gpu) for at, gpu in samples if gpu.reachable and not gpu.mig_of]
    numbers = _numbers(database, {gpu.uuid for _, gpu in told})
    known = [(at, gpu) for at, gpu in told if gpu.uuid in numbers]
    marks = ", ".join("?" * (len(COLUMNS) + 2))
    database.executemany(
        f"INSERT OR REPLACE INTO gpu_samples (resolution_s, at_unix_s, gpu, {', '.join(COLUMNS)})"
        f" VALUES (1, {marks})",
        [(at, numbers[gpu.uuid], *(getattr(gpu, name) for name in COLUMNS)) for at, gpu in known],
    )
    _average(database, {at for at, _ in known}, sorted(keep_s))


def _numbers(database: sqlite3.Connection, uuids: Iterable[str]) -> dict[str, int]:
    """Of those that are kept."""
    for uuid in sorted(uuids):
        database.execute(
            "INSERT OR IGNORE INTO gpus (uuid) SELECT ? WHERE (SELECT count(*) FROM gpus) < ?",
            (uuid, MOST_GPUS),
        )
    return dict(database.execute("SELECT uuid, number FROM gpus"))


def _average(database: sqlite3.Connection, times: Iterable[int], resolutions: list[int]) -> None:
    """Make each coarser row that a sample falls into, anew from what is there of it."""
    figures = ", ".join(f"avg({name})" for name in COLUMNS)
    for finer, coarser in itertools.pairwise(resolutions):
        for start in {at - at % coarser for at in times}:
            database.execute(
                "INSERT OR REPLACE INTO gpu_samples"
                f" (resolution_s, at_unix_s, gpu, {', '.join(COLUMNS)})"
                f" SELECT ?, ?, gpu, {figures} FROM gpu_samples"
                " WHERE resolution_s = ? AND at_unix_s >= ? AND at_unix_s < ? GROUP BY gpu",
                (coarser, start, finer, start, start + coarser),
            )


def forget(database: sqlite3.Connection) -> None:
    """The cards of which no sample is left. Reads all: not for each batch."""
    database.execute("DELETE FROM gpus WHERE number NOT IN (SELECT gpu FROM gpu_samples)")
