"""The tasks that ended, out of the executor's database: searched, newest first, page by page.

For readers: read-only, one connection a query; a database that is busy or not there is no news.
What is looked for goes to SQLite as values, never as text of a query.
"""

import math
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.messages import TaskPhase

BUSY_S = 0.2  # no news is shown sooner than late news
MOST_ROWS = 500
MOST_WORDS, MOST_WORD_CHARACTERS = 8, 200
COLUMNS = (
    "task_id", "attempt", "directory", "phase", "image", "command", "accepted_unix_s",
    "started_unix_s", "finished_unix_s", "exit_code", "error", "cause", "run_s", "cpu_s",
    "memory_peak_bytes", "output_bytes", "output_files",
)  # fmt: skip
SEARCHED = ("directory", "image", "command", "error", "cause")
ORDER = ("finished_unix_s", "task_id", "attempt")


class SearchError(ValueError):
    """What is asked for can't be looked for; the text says why."""


class Place(NamedTuple):
    """A row's place in the history: a page goes on after it."""

    finished_unix_s: float
    task_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.finished_unix_s!r},{self.attempt},{self.task_id}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """SearchError: it is none of ours."""
        try:
            finished, attempt, task_id = text.split(",", 2)
            place = cls(float(finished), task_id, int(attempt))
        except ValueError as err:
            raise SearchError("after must be what an answer named as next") from err
        if not math.isfinite(place.finished_unix_s) or place.attempt.bit_length() > 62:
            raise SearchError("after must be what an answer named as next")
        return place


@dataclass(frozen=True)
class Search:
    """`text`: words, each of which is in the task's name, image, command, error or cause, in
    upper or lower case. No phases: all."""

    text: str = ""
    phases: tuple[TaskPhase, ...] = ()
    since_unix_s: float = 0.0
    until_unix_s: float = math.inf
    after: Place | None = None
    limit: int = 50

    def __post_init__(self) -> None:
        words = self.words
        if len(words) > MOST_WORDS or any(len(word) > MOST_WORD_CHARACTERS for word in words):
            raise SearchError(f"look for at most {MOST_WORDS} words of {MOST_WORD_CHARACTERS}")
        if not 1 <= self.limit <= MOST_ROWS:
            raise SearchError(f"limit must be between 1 and {MOST_ROWS}")

    @property
    def words(self) -> list[str]:
        return self.text.split()


@dataclass(frozen=True)
class Page:
    """Rows by their columns' names, and where to go on; None: there are no more."""

    rows: list[dict[str, Any]]
    next: Place | None


def read_history(database: Path, search: Search) -> Page | None:
    """None: there is no history yet, or it can't be read at the moment."""
    query, values = _query(search)
    uri = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute(query, values)]
    except sqlite3.Error:  # busy, being made, being moved: the next look will tell
        return None
    last = rows[search.limit - 1] if len(rows) > search.limit else None
    return Page(rows[: search.limit], Place(*(last[name] for name in ORDER)) if last else None)


def _query(search: Search) -> tuple[str, list[object]]:
    """One row more than is shown: it says whether there are more."""
    parts = list(_conditions(search))
    where = " AND ".join(condition for condition, _ in parts)
    order = ", ".join(f"{name} DESC" for name in ORDER)
    query = f"SELECT {', '.join(COLUMNS)} FROM tasks WHERE {where} ORDER BY {order} LIMIT ?"
    return query, [*(value for _, values in parts for value in values), search.limit + 1]


def _conditions(search: Search) -> Iterator[tuple[str, tuple[object, ...]]]:
    yield "finished_unix_s > ?", (search.since_unix_s,)
    if search.until_unix_s < math.inf:
        yield "finished_unix_s <= ?", (search.until_unix_s,)
    if search.phases:
        marks = ", ".join("?" * len(search.phases))
        yield f"phase IN ({marks})", tuple(str(phase) for phase in search.phases)
    for word in search.words:
        like = " OR ".join(f"{name} LIKE ? ESCAPE '\\'" for name in SEARCHED)
        yield f"({like})", (f"%{_literal(word)}%",) * len(SEARCHED)
    if search.after is not None:
        yield f"({', '.join(ORDER)}) < (?, ?, ?)", search.after


def _literal(word: str) -> str:
    r"""For LIKE: `%`, `_` and `\` mean themselves."""
    return re.sub(r"([\\%_])", r"\\\1", word)
