"""Tables and bars for people."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

NO_TERMINAL_COLUMNS = 240


def nodes(found: list[dict[str, Any]]) -> Table:
    table = _table("node", "name", "state", "trust", "cpus", "memory", "gpus", "tasks", "reward")
    for node in found:
        inventory = node["inventory"]
        table.add_row(
            node["node_id"],
            node["name"],
            node["state"],
            str(node["trust_level"]),
            str(inventory.get("cpu_count", 0)),
            f"{int(inventory.get('memory_bytes', 0)) / 2**30:.1f} GiB",
            str(len(inventory.get("gpus", []))),
            str(node["tasks"]),
            _reward(node),
        )
    return table


def _reward(node: dict[str, Any]) -> str:
    wrong = node["rewards_wrong"]
    return f"{node['reward_total']} ({wrong} claimed wrong)" if wrong else str(node["reward_total"])


def tasks(found: list[dict[str, Any]], now_unix_s: float) -> Table:
    table = _table("task", "state", "exit", "try", "node", "age", "reward", "note")
    for task in found:
        code = task["exit_code"]
        table.add_row(
            task["task_id"],
            task["state"],
            "" if code is None or code < 0 else str(code),
            str(task["attempt"]),
            task["node_id"] or "",
            age(now_unix_s - task["submitted_unix_s"]),
            "" if task["reward"] is None else str(task["reward"]),
            task["error"] or task["detail"],
        )
    return table


def age(seconds: float) -> str:
    """In the largest unit that makes at least one."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length_s:
            return f"{seconds // length_s:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def show(table: Table) -> None:
    """Lines are cut to a terminal's width, never to that of a file or a pipe."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=NO_TERMINAL_COLUMNS)
    console.print(table, markup=False)


class Bar:
    """Counts what passes, on a bar where stderr is a terminal."""

    def __init__(self, progress: Progress, total_bytes: int, text: str) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=total_bytes)

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._progress.advance(self._task, len(chunk))
            yield chunk


@contextmanager
def bar(text: str, total_bytes: int) -> Iterator[Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(file=sys.stderr)
    with Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        yield Bar(progress, total_bytes, text)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != "note")
    return table
