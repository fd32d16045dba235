"""The tasks that ended, as the page asks for them and shows them. Pure but for `look`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from procs.web.core import harmless
from shared.history import Page, Place, Search, SearchError, read_history
from shared.messages import TaskPhase

STRANGERS = ("image", "command", "error")  # what a master or a task wrote


class Parameters(Protocol):
    """Of a query: Starlette's QueryParams, or a test's."""

    def get(self, key: str, default: str) -> str: ...
    def getlist(self, key: str, /) -> Sequence[str]: ...


def wanted(parameters: Parameters) -> Search:
    """SearchError: it can't be read, and why."""
    after = parameters.get("after", "")
    return Search(
        text=parameters.get("text", ""),
        phases=tuple(_phase(name) for name in parameters.getlist("state") if name),
        since_unix_s=_time(parameters, "since", 0.0),
        until_unix_s=_time(parameters, "until", math.inf),
        after=Place.parse(after) if after else None,
    )


def _phase(name: str) -> TaskPhase:
    try:
        return TaskPhase(name)
    except ValueError as err:
        ends = " or ".join(phase for phase in TaskPhase if phase.is_final)
        raise SearchError(f"state must be {ends}") from err


def _time(parameters: Parameters, name: str, default: float) -> float:
    text = parameters.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError as err:
        raise SearchError(f"{name} must be seconds since 1970") from err
    if math.isnan(value):
        raise SearchError(f"{name} must be seconds since 1970")
    return value


def look(database: Path, search: Search) -> dict[str, Any] | None:
    """None: there is no history yet, or it can't be read at the moment."""
    page = read_history(database, search)
    return None if page is None else shown(page)


def shown(page: Page) -> dict[str, Any]:
    return {
        "tasks": [_row(row) for row in page.rows],
        "next": None if page.next is None else str(page.next),
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **{name: harmless(row[name] or "") for name in STRANGERS}}
