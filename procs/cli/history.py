"""`hivemind-worker history` and `debug`: what has ended here, and what is left of what failed.

Reads the home's files; publishes nothing, changes nothing.
"""

import re
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from procs.cli.core import UNPRINTABLE, duration
from shared.history import Search, SearchError, read_history
from shared.messages import TaskPhase
from shared.taskdir import DEBUG, KEPT, LOG, TASKS, TaskKey

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
ENDS = tuple(phase for phase in TaskPhase if phase.is_final)


class NothingError(Exception):
    """There is nothing to show; the text says why."""


def search(text: str, states: Iterable[str], since: str, limit: int, now_unix_s: float) -> Search:
    """SearchError: one of them can't be read."""
    since_unix_s = unix_s(since, now_unix_s) if since else 0.0
    return Search(text, tuple(map(_phase, states)), since_unix_s, limit=limit)


def _phase(name: str) -> TaskPhase:
    if name not in ENDS:
        raise SearchError(f"--state must be {' or '.join(ENDS)}")
    return TaskPhase(name)


def unix_s(text: str, now_unix_s: float) -> float:
    """`90m`, `2d`: so long ago; else a date, with a time or without, here."""
    if found := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
        return now_unix_s - int(found[1]) * UNITS_S[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as err:
        raise SearchError("--since must be like 90m, 2d or 2026-11-25T08:00") from err


def show(home: Path, wanted: Search, *, as_json: bool) -> None:
    """To stdout, the newest first; NothingError."""
    page = read_history(home / "lib" / "executor.db", wanted)
    if page is None:
        raise NothingError(f"there is no history in {home}")
    if as_json:
        print(msgspec.json.encode([shown(home, row) for row in page.rows]).decode())
        return
    for row in page.rows:
        print(_lines(shown(home, row), time.time()).translate(UNPRINTABLE))
    if page.next is not None:
        print(f"the newest {len(page.rows)}; --limit shows more", file=sys.stderr)


def shown(home: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """With `debug`: where what is left of it lies, or null."""
    folder = home / DEBUG / str(row["directory"])
    return {**row, "debug": str(folder) if folder.exists() else None}


def _lines(task: Mapping[str, Any], now_unix_s: float) -> str:
    ago = duration(now_unix_s - task["finished_unix_s"])
    ran = f"ran {duration(task['run_s'])}" if task["started_unix_s"] else "never ran"
    code = task["exit_code"]
    exited = f", exit code {code}" if task["started_unix_s"] and code is not None else ""
    lines = [f"{task['directory']:<20} {task['phase']}, {ago} ago, {ran}{exited}"]
    lines += [f"    {task['image']}  {task['command']}".rstrip()]
    lines += [f"    {task['error']}"] if task["error"] else []
    lines += [f"    what is left of it: {task['debug']}"] if task["debug"] else []
    return "\n".join(line.replace("\n", " ") for line in lines)


def show_debug(home: Path, task: str, retention_h: float) -> None:
    """The folders of a task, or of one attempt; NothingError."""
    found = [p for p in _folders(home / DEBUG) if task in (p.name, p.name.rpartition(".")[0])]
    if not found:
        raise NothingError(
            f"nothing is left of {task}: of tasks that failed it is kept for"
            f" DEBUG_RETENTION={retention_h:g} hours"
        )
    for folder in found:
        print(folder)
        for place in (home / TASKS, home / KEPT):
            if (place / folder.name / LOG).exists():
                print(f"    its log: {place / folder.name / LOG}")


def _folders(debug: Path) -> list[Path]:
    try:
        return sorted(path for path in debug.iterdir() if TaskKey.parse(path.name))
    except FileNotFoundError:
        return []
