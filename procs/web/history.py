"""The tasks that ended, from the executor's database: read-only, one connection a query."""

import sqlite3
from pathlib import Path
from typing import Any

MOST_ROWS = 50
BUSY_S = 0.2  # no news is shown sooner than late news
COLUMNS = (
    "task_id", "attempt", "phase", "image", "accepted_unix_s", "started_unix_s",
    "finished_unix_s", "exit_code", "error", "cause",
)  # fmt: skip
QUERY = (
    "SELECT * FROM tasks WHERE finished_unix_s > 0"
    f" ORDER BY finished_unix_s DESC LIMIT {MOST_ROWS}"
)


def read_history(path: Path) -> list[dict[str, Any]] | None:
    """The newest first; None: there is none yet, or it can't be read at the moment."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S)
    except sqlite3.Error:
        return None
    try:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(QUERY)]
    except sqlite3.Error:  # busy, being made, being moved: the next look will tell
        return None
    finally:
        connection.close()
    return [{name: row.get(name) for name in COLUMNS} for row in rows]
