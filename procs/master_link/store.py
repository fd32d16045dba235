"""link.db: what of the link must outlive a crash. All of SQLite in this process is here.

The task directories are the record; this is an index beside them, and a broken one is set aside
and built again. No secret goes in: SQLite keeps deleted bytes. Methods block: call in a thread.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from procs.master_link import reports
from procs.master_link.core import DAY_S, Attempt, Stage
from shared.database import open_database
from shared.files import write_atomic
from shared.messages import StopReason, TaskPhase
from shared.pb import hivemind_pb2 as pb
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
)
COLUMNS = (
    "task_id, attempt, digest, accepted_unix_s, stage, stop, stop_detail, phase_sent, final,"
    " delivered_unix_s, redeliver, size_bytes"
)
Row = tuple[str, int, str, float, str, str, str, str, str, float, int, int]
REMEMBER_S = 365 * DAY_S  # a delivered attempt is refused as such for so long

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("master_link")


class StoreFaultError(OSError):
    """link.db can't be written or read just now: a full disk, above all."""


class Store:
    """An open link.db."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._db = database
        self._total_path = path.with_name("reward.total")  # outlives a broken link.db
        self._least_total = _read_total(self._total_path)
        self.pending_reports = self._count_reports()  # read by any thread

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open, migrated; a broken file is set aside and an empty database begun, to be filled
        from the directories."""
        database = open_database(path, MIGRATIONS, log)
        database.isolation_level = "DEFERRED"  # `with` then holds all of a change together
        return cls(database, path)

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

    def save(self, rows: Iterable[Row]) -> None:
        marks = ", ".join("?" * len(COLUMNS.split(",")))
        with self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO attempts VALUES ({marks})", rows)

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

    # -------------------------------------------------------------- reports

    def add_report(self, message: pb.NodeStatusRequest) -> int:
        """Store an interval and count its reward, together; the new total.

        An interval that was never sent takes the new one in: a long outage costs one row.
        """
        total = self.reward_total() + message.reward
        with self._db:
            number, unsent = self._unsent()
            if unsent is not None:
                message = reports.merged(unsent, message)
            message.reward_total = total
            self._db.execute(
                "INSERT OR REPLACE INTO reports VALUES (?, 0, ?)",
                (number, message.SerializeToString()),
            )
            self._set_fact("reward_total", str(total))
            self._set_fact("reported_to_unix_s", repr(message.to.ToNanoseconds() / 1e9))
        self.pending_reports = self._count_reports()
        self._keep_total(total)
        return total

    def _unsent(self) -> tuple[int | None, pb.NodeStatusRequest | None]:
        row = self._db.execute("SELECT number, body FROM reports WHERE sent = 0").fetchone()
        if row is None:
            return None, None
        return row[0], pb.NodeStatusRequest.FromString(row[1])

    def reward_total(self) -> int:
        return max(int(self.fact("reward_total") or 0), self._least_total)

    def _keep_total(self, total: int) -> None:
        """After the commit: the file may be behind link.db, never ahead of it."""
        try:
            write_atomic(self._total_path, f"{total}\n".encode())
        except OSError as err:  # the interval is counted already: to raise would count it twice
            log.warning("%s can't be written: %s", self._total_path, err)

    def next_report(self, node_id: str) -> tuple[int, bytes] | None:
        """The oldest report, marked as sent before it is: from here on it never changes."""
        row = self._db.execute(
            "SELECT number, sent, body FROM reports ORDER BY number LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        number, sent, body = row
        if not sent:
            message = pb.NodeStatusRequest.FromString(body)
            message.node_id = node_id
            body = message.SerializeToString()
            with self._db:
                self._db.execute(
                    "UPDATE reports SET sent = 1, body = ? WHERE number = ?", (body, number)
                )
        return number, body

    def drop_report(self, number: int) -> None:
        with self._db:
            self._db.execute("DELETE FROM reports WHERE number = ?", (number,))
        self.pending_reports = self._count_reports()

    def _count_reports(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM reports").fetchone()[0])


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


def _read_total(path: Path) -> int:
    try:
        return max(int(path.read_bytes()), 0)
    except (OSError, ValueError):
        return 0

