"""link.db: what of the link must outlive a crash. All of SQLite in this process is here.

The task directories are the record; this is an index beside them, and a broken one is set aside
and built again. No secret goes in: SQLite keeps deleted bytes. Methods block: call in a thread.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from procs.master_link.core import DAY_S, Attempt, Stage
from procs.master_link.reports import Reward
from shared.database import open_database
from shared.messages import StopReason, TaskPhase
from shared.taskdir import TaskKey

MIGRATIONS = (
    """
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (
        task_id TEXT, attempt INTEGER, digest TEXT, accepted_unix_s REAL, stage TEXT, stop TEXT,
        stop_detail TEXT, phase_sent TEXT, final TEXT, delivered_unix_s REAL, redeliver INTEGER,
        size_bytes INTEGER, PRIMARY KEY (task_id, attempt)
    ) WITHOUT ROWID;
    CREATE INDEX attempts_by_stage ON attempts (stage, delivered_unix_s);
    CREATE TABLE cancels (
        task_id TEXT, attempt INTEGER, reason TEXT, at_unix_s REAL, PRIMARY KEY (task_id, attempt)
    ) WITHOUT ROWID;
    CREATE TABLE reports (number INTEGER PRIMARY KEY AUTOINCREMENT, sent INTEGER, body BLOB);
    """,
    """
    DROP TABLE reports;
    CREATE TABLE rewards (
        kind TEXT, name TEXT, from_unix_s REAL, to_unix_s REAL, cpu_pct REAL, memory_pct REAL,
        gpu_pct REAL, reward INTEGER, total INTEGER, PRIMARY KEY (kind, name, from_unix_s)
    ) WITHOUT ROWID;
    CREATE INDEX rewards_by_time ON rewards (to_unix_s);
    """,
)
COLUMNS = (
    "task_id, attempt, digest, accepted_unix_s, stage, stop, stop_detail, phase_sent, final,"
    " delivered_unix_s, redeliver, size_bytes"
)
Row = tuple[str, int, str, float, str, str, str, str, str, float, int, int]
REWARDS_S = 30 * DAY_S  # so long each one is listed
REMEMBER_S = 365 * DAY_S  # a delivered attempt is refused as such for so long

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("master_link")


class StoreFaultError(OSError):
    """link.db can't be written or read just now: a full disk, above all."""


class Store:
    """An open link.db."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open, migrated; a broken file is set aside and an empty database begun, to be filled
        from the directories."""
        database = open_database(path, MIGRATIONS, log)
        database.isolation_level = "DEFERRED"  # `with` then holds all of a change together
        return cls(database)

    def close(self) -> None:
        self._db.close()

    # -------------------------------------------------------------- facts

    def fact(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_fact(self, name: str, value: str) -> None:
        with self._db:
            self._set_fact(name, value)

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            (name, value),
        )

    # -------------------------------------------------------------- attempts

    def attempts(self, *stages: Stage) -> list[Attempt]:
        """Those in any of `stages` or to be delivered again."""
        marks = ", ".join("?" * len(stages))
        query = f"SELECT {COLUMNS} FROM attempts WHERE stage IN ({marks}) OR redeliver = 1"
        return [_attempt(row) for row in self._db.execute(query, stages)]

    def of_task(self, key: TaskKey, now_unix_s: float) -> tuple[list[Attempt], str | None]:
        """All attempts of the key's task, and why `key` was cancelled before it came."""
        query = f"SELECT {COLUMNS} FROM attempts WHERE task_id = ?"
        attempts = [_attempt(row) for row in self._db.execute(query, (key.task_id,))]
        return attempts, self.early_cancel(key, now_unix_s)

    def kept(self) -> list[Attempt]:
        """Those whose directories are kept, the oldest delivery first."""
        query = (
            f"SELECT {COLUMNS} FROM attempts WHERE stage = ? AND redeliver = 0"
            " ORDER BY delivered_unix_s"
        )
        return [_attempt(row) for row in self._db.execute(query, (Stage.KEPT,))]

    def save(self, rows: Iterable[Row], earned: Reward | None = None) -> None:
        marks = ", ".join("?" * len(COLUMNS.split(",")))
        with self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO attempts VALUES ({marks})", rows)
            if earned is not None:
                self._list(earned)

    # -------------------------------------------------------------- cancels that came early

    def remember_cancel(self, key: TaskKey, reason: str, now_unix_s: float) -> None:
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO cancels VALUES (?, ?, ?, ?)", (*key, reason, now_unix_s)
            )

    def early_cancel(self, key: TaskKey, now_unix_s: float) -> str | None:
        """Why `key` was cancelled before it came; None: it was not."""
        row = self._db.execute(
            "SELECT reason FROM cancels WHERE task_id = ? AND attempt = ? AND at_unix_s > ?",
            (*key, now_unix_s - DAY_S),
        ).fetchone()
        return str(row[0]) if row else None

    def trim(self, now_unix_s: float) -> None:
        with self._db:
            self._db.execute("DELETE FROM cancels WHERE at_unix_s < ?", (now_unix_s - DAY_S,))
            self._db.execute(
                "DELETE FROM attempts WHERE stage = ? AND delivered_unix_s < ?",
                (Stage.GONE, now_unix_s - REMEMBER_S),
            )
            self._db.execute("DELETE FROM rewards WHERE to_unix_s < ?", (now_unix_s - REWARDS_S,))

    # -------------------------------------------------------------- rewards

    def add_reward(self, earned: Reward) -> None:
        """For the owner to look at: the total is the ledger's."""
        with self._db:
            self._list(earned)

    def _list(self, earned: Reward) -> None:
        """Once, however often it was delivered."""
        marks = ", ".join("?" * len(earned))
        self._db.execute(f"INSERT OR IGNORE INTO rewards VALUES ({marks})", earned)

    def last_total(self) -> int:
        """What the list, or an earlier version's total, says of the sum."""
        listed = self._db.execute("SELECT MAX(total) FROM rewards").fetchone()[0]
        return max(int(listed or 0), int(self.fact("reward_total") or 0))


def guarded(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call of a Store's method, its errors in our words."""
    try:
        return call(*args, **kwargs)
    except sqlite3.OperationalError as err:
        raise StoreFaultError(f"link.db: {err}") from err


def row_of(attempt: Attempt) -> Row:
    """A snapshot: the attempt may change while another thread writes."""
    return (
        attempt.key.task_id,
        attempt.key.attempt,
        attempt.digest,
        attempt.accepted_unix_s,
        attempt.stage.value,
        attempt.stop.value if attempt.stop else "",
        attempt.stop_detail,
        attempt.phase_sent.value if attempt.phase_sent else "",
        attempt.final.value if attempt.final else "",
        attempt.delivered_unix_s,
        int(attempt.redeliver),
        attempt.size_bytes,
    )


def _attempt(row: Row) -> Attempt:
    return Attempt(
        key=TaskKey(row[0], row[1]),
        digest=row[2],
        accepted_unix_s=row[3],
        stage=Stage(row[4]),
        stop=StopReason(row[5]) if row[5] else None,
        stop_detail=row[6],
        phase_sent=TaskPhase(row[7]) if row[7] else None,
        final=TaskPhase(row[8]) if row[8] else None,
        delivered_unix_s=row[9],
        redeliver=bool(row[10]),
        size_bytes=row[11],
    )
