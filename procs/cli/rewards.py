"""`hivemind-worker rewards`: what the machine has earned, each with what it was earned for.

Reads lib/link.db, read-only; publishes nothing.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from procs.cli.core import UNPRINTABLE, duration
from procs.cli.history import NothingError

BUSY_S = 2.0
COLUMNS = (
    "kind", "name", "from_unix_s", "to_unix_s", "cpu_pct", "memory_pct", "gpu_pct", "reward",
    "total",
)  # fmt: skip
NEWEST = f"""
    SELECT {", ".join(COLUMNS)} FROM rewards WHERE to_unix_s > ?
    ORDER BY to_unix_s DESC, kind, name LIMIT ?
"""
SUMS = """
    SELECT COALESCE(MAX(total), 0), COALESCE(SUM(reward) FILTER (WHERE kind = 'task'), 0)
    FROM rewards
"""


def read(home: Path, since_unix_s: float, limit: int) -> dict[str, Any]:
    """The newest first; NothingError."""
    uri = f"{(home / 'lib' / 'link.db').absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as database:
            rows = database.execute(NEWEST, (since_unix_s, limit)).fetchall()
            total, task_total = database.execute(SUMS).fetchone()
    except sqlite3.Error as err:
        raise NothingError(f"there is no list of rewards in {home}: {err}") from err
    rewards = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return {"reward_total": total, "task_rewards": task_total, "rewards": rewards}


def show(home: Path, since_unix_s: float, limit: int, *, as_json: bool) -> None:
    """To stdout; NothingError."""
    found = read(home, since_unix_s, limit)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    print(f"{found['reward_total']} by report intervals, {found['task_rewards']} by listed tasks")
    for line in _lines(found["rewards"]):
        print(line.translate(UNPRINTABLE))


def _lines(rewards: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for row in rewards:
        at = datetime.fromtimestamp(row["to_unix_s"]).isoformat(" ", "seconds")
        took = duration(row["to_unix_s"] - row["from_unix_s"])
        use = f"CPU {row['cpu_pct']:.1f} %, memory {row['memory_pct']:.1f} %"
        use += f", GPU {row['gpu_pct']:.1f} %" if row["gpu_pct"] else ""
        yield f"{at}  {row['name'] or 'interval':<20} {took:>7}  {row['reward']:>4}  {use}"
