"""The history as readers search it: exact, in pages, quick, and safe from what is looked for."""

import math
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from procs.executor.store import UPSERT, open_if_possible
from shared.history import MOST_ROWS, Place, Search, SearchError, _query, read_history
from shared.messages import TaskPhase
from tests.fakes.history import Ended, write_history

FAILED, SUCCEEDED, CANCELLED = TaskPhase.FAILED, TaskPhase.SUCCEEDED, TaskPhase.CANCELLED
TASKS = (
    Ended("train-1", SUCCEEDED, 100.0, image="python:3.11", command="python3 train.py"),
    Ended("train-1", FAILED, 200.0, attempt=2, error="the command exited 3"),
    Ended("render", CANCELLED, 300.0, image="blender:4", command="blender --frame 7"),
    Ended("odd_100%", FAILED, 400.0, image="ghcr.io/o/x", command=r"a\b 'c' \"d\""),
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    write_history(tmp_path / "db", *TASKS)
    return tmp_path / "db"


def found(database: Path, search: Search) -> list[str]:
    page = read_history(database, search)
    assert page is not None
    return [row["directory"] for row in page.rows]


@pytest.mark.parametrize(
    ("search", "names"),
    [
        (Search(), ["odd_100%.1", "render.1", "train-1.2", "train-1.1"]),
        (Search("train"), ["train-1.2", "train-1.1"]),
        (Search("train-1.2"), ["train-1.2"]),
        (Search("TRAIN PYTHON 3.11 exited"), ["train-1.2"]),
        (Search("blender:4"), ["render.1"]),
        (Search("frame 7"), ["render.1"]),
        (Search("%"), ["odd_100%.1"]),
        (Search("_"), ["odd_100%.1"]),
        (Search("a\\b"), ["odd_100%.1"]),
        (Search("'c'"), ["odd_100%.1"]),
        (Search("' OR 1=1 --"), []),
        (Search("rend\0er"), []),
        (Search(phases=(FAILED,)), ["odd_100%.1", "train-1.2"]),
        (Search(phases=(FAILED, CANCELLED)), ["odd_100%.1", "render.1", "train-1.2"]),
        (Search("train", phases=(SUCCEEDED,)), ["train-1.1"]),
        (Search(since_unix_s=200.0), ["odd_100%.1", "render.1"]),
        (Search(until_unix_s=200.0), ["train-1.2", "train-1.1"]),
        (Search(since_unix_s=100.0, until_unix_s=300.0), ["render.1", "train-1.2"]),
        (Search(limit=1), ["odd_100%.1"]),
    ],
)
def test_searches(database: Path, search: Search, names: list[str]) -> None:
    assert found(database, search) == names


def test_pages_hold_each_row_once_also_where_many_ended_at_once(tmp_path: Path) -> None:
    times = random.Random(5).choices(range(10), k=97)
    write_history(tmp_path / "db", *(Ended(f"t-{n}", FAILED, 1e9 + t) for n, t in enumerate(times)))
    seen, after = [], None
    while True:
        page = read_history(tmp_path / "db", Search(limit=10, after=after))
        assert page is not None
        seen += page.rows
        if page.next is None:
            break
        after = Place.parse(str(page.next))
    assert len({row["directory"] for row in seen}) == len(seen) == 97
    ends = [row["finished_unix_s"] for row in seen]
    assert ends == sorted(ends, reverse=True)


def test_what_has_not_ended_is_no_history(tmp_path: Path) -> None:
    write_history(tmp_path / "db", Ended("t", FAILED, 1.0))
    with closing(sqlite3.connect(tmp_path / "db")) as connection, connection:
        connection.execute("UPDATE tasks SET finished_unix_s = NULL")
    assert found(tmp_path / "db", Search()) == []


@pytest.mark.parametrize("content", [None, b"", b"no database " * 1000])
def test_no_history_is_no_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "db"
    if content is not None:
        path.write_bytes(content)
    assert read_history(path, Search()) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Search("a " * 9), "at most 8 words"),
        (lambda: Search("a" * 201), "at most 8 words of 200"),
        (lambda: Search(limit=0), "limit must be between 1 and"),
        (lambda: Search(limit=MOST_ROWS + 1), "limit must be between 1 and"),
        (lambda: Place.parse("x"), "after must be"),
        (lambda: Place.parse("nan,1,t"), "after must be"),
        (lambda: Place.parse(f"1.0,{1 << 63},t"), "after must be"),
    ],
)
def test_what_can_not_be_looked_for_is_said(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SearchError, match=said):
        make()


def test_a_place_comes_back_as_it_was() -> None:
    place = Place(1764042521.123456, "a,b", 7)
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize(
    "search",
    [
        Search(),
        Search("x", phases=(FAILED,)),
        Search(since_unix_s=5.0, until_unix_s=9.0, after=Place(8.0, "t", 1)),
    ],
)
def test_pages_follow_the_index_and_sort_nothing(database: Path, search: Search) -> None:
    query, values = _query(search)
    with closing(sqlite3.connect(database)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    assert len(plan) == 1, plan
    assert plan[0].startswith("SEARCH tasks USING INDEX tasks_by_end (finished_unix_s")


def test_fifty_thousand_rows_are_searched_through(tmp_path: Path) -> None:
    """How long that takes is printed: it is for people to judge."""
    connection = open_if_possible(tmp_path / "db")
    assert connection is not None
    with closing(connection):
        connection.execute("BEGIN")
        connection.executemany(UPSERT, (_many(n) for n in range(50_000)))
        connection.execute("COMMIT")
    for search, count in (
        (Search(), 50), (Search("t-00007"), 10), (Search("nowhere"), 0),
        (Search(phases=(CANCELLED,)), 0), (Search(after=Place(25_000.5, "", 0)), 50),
    ):  # fmt: skip
        began_s = time.perf_counter()
        assert len(found(tmp_path / "db", search)) == count
        print(f"{search}: {1000 * (time.perf_counter() - began_s):.0f} ms")


def _many(n: int) -> tuple[object, ...]:
    name, at = f"t-{n:06d}", float(n + 1)
    head = (name, 1, f"{name}.1", "succeeded", "[]", "registry.example.org/team/image:1")
    return (*head, "python3 train.py --epochs 10", at, 1.0, 1.0, at, 0, "", "", 1.0, 1.0, 1, 1, 1)


def test_until_no_end_is_no_condition() -> None:
    assert "<=" not in _query(Search(until_unix_s=math.inf))[0]
