"""The history: an index that may break, be newer, or find no room, and stops nothing."""

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from procs.executor.store import KEPT_DAYS, MIGRATIONS, UPSERT, Store, row
from shared.database import NewerDatabaseError
from shared.messages import HeldTask, PhaseAt, TaskPhase
from shared.taskdir import Report, TaskKey
from tests.shared.polling import until

ACCEPTED = PhaseAt(phase=TaskPhase.ACCEPTED, at_unix_s=1.0)


def held(name: str, phase: TaskPhase = TaskPhase.ACCEPTED) -> HeldTask:
    return HeldTask(
        task_id=name, attempt=1, phase=phase, directory=f"{name}.1", phases=(ACCEPTED,),
        command=("echo", "x" * 1000),
    )  # fmt: skip


def write(path: Path, *rows: tuple[object, ...]) -> None:
    store = Store(path)
    for one in rows:
        store.put(one)
    store.close()


def names(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT task_id FROM tasks ORDER BY 1")]


def written(path: Path) -> list[str]:
    with suppress(sqlite3.OperationalError):  # its schema is being made
        return names(path)
    return []


def test_the_phases_of_what_has_not_ended_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "db"
    report = Report(task_id="b", attempt=1, phase=TaskPhase.FAILED, finished_unix_s=2.0)
    write(path, row(held("a"), 1.0, None), row(held("b"), 1.0, None),
          row(held("b", TaskPhase.FAILED), 1.0, report))  # fmt: skip
    store = Store(path)
    assert store.phases() == {TaskKey("a", 1): (ACCEPTED,)}
    store.close()


@pytest.mark.parametrize("damage", ["garbage", "no table"])
def test_a_broken_one_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "db"
    if damage == "garbage":
        path.write_bytes(b"garbage" * 1000)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    write(path, row(held("a"), 1.0, None))
    assert names(path) == ["a"]
    assert len(list(tmp_path.glob("db.broken-*"))) == 1


def test_a_newer_one_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(NewerDatabaseError, match="update it"):
        Store(path)
    assert list(tmp_path.glob("*.broken*")) == []


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_an_older_one_goes_on_with_what_it_has(tmp_path: Path, version: int) -> None:
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for script in MIGRATIONS[:version]:
            connection.executescript(script)
        if version:
            connection.execute(UPSERT, row(held("old"), 1.0, None))
        connection.execute(f"PRAGMA user_version = {version}")
    write(path, row(held("new"), 1.0, None))
    assert names(path) == (["new", "old"] if version else ["new"])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        indexes = {name for _, name, *_ in connection.execute("PRAGMA index_list(tasks)")}
    assert {"tasks_by_time", "tasks_by_end"} <= indexes


def test_one_that_has_lost_its_table_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    write(path, row(held("a"), 1.0, None))
    assert names(path) == ["a"]


def test_one_that_can_not_be_opened_now_is_no_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "there" / "db"
    store = Store(path)
    assert store.phases() == {}
    path.parent.mkdir()
    store.put(row(held("a"), 1.0, None))
    store.close()
    assert names(path) == ["a"]


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "db"
    report = Report(task_id="b", attempt=1, phase=TaskPhase.FAILED, error="no entry \udcff")
    write(path, row(held("b"), 1.0, report))
    assert names(path) == ["b"]


def test_what_was_not_written_is_tried_again_without_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("procs.executor.store.RETRY_S", 0.05)
    path = tmp_path / "there" / "db"
    store = Store(path)
    store.put(row(held("a"), 1.0, None))
    until(lambda: caplog.text.count("can't be opened now") > 1, "a first try")
    path.parent.mkdir()
    until(lambda: path.exists() and written(path) == ["a"], "it is written")
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_its_thread_did_not_handle_is_raised_in_the_loop(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.put((*row(held("a"), 1.0, None)[:-1], 1 << 70))  # more than SQLite's integers
    with pytest.raises(OverflowError):
        until(lambda: store.put(row(held("b"), 1.0, None)), "its end")
    store.close()


def test_phases_that_nobody_can_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path, row(held("a"), 1.0, None), row(held("b"), 1.0, None))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("""UPDATE tasks SET phases = '[["from the future", 1]]'
                              WHERE task_id = 'a'""")
    store = Store(path)
    assert list(store.phases()) == [TaskKey("b", 1)]
    store.close()


def test_old_rows_go(tmp_path: Path) -> None:
    path = tmp_path / "db"
    write(path, row(held("old"), 1.0, None), row(held("new"), 1.0, None))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE tasks SET changed_unix_s = ? WHERE task_id = 'old'",
            (time.time() - (KEPT_DAYS + 1) * 86400,),
        )
    write(path, row(held("newer"), 1.0, None))
    assert names(path) == ["new", "newer"]
