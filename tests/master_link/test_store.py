"""link.db: its version, its damage, its full disk."""

import sqlite3
from pathlib import Path

import pytest

from procs.master_link.core import Attempt, Stage
from procs.master_link.reports import Reward
from procs.master_link.store import REWARDS_S, Store, StoreFaultError, guarded, row_of
from shared.database import NewerDatabaseError
from shared.messages import StopReason, TaskPhase
from shared.taskdir import TaskKey

ATTEMPT = Attempt(
    TaskKey("t", 1),
    "digest",
    1.0,
    Stage.KEPT,
    StopReason.CANCELLED,
    "why",
    TaskPhase.RUNNING,
    TaskPhase.CANCELLED,
    2.0,
    True,
    3,
)


def test_an_attempt_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "link.db")
    store.save([row_of(ATTEMPT)])
    store.close()
    store = Store.open(tmp_path / "link.db")
    assert store.of_task(TaskKey("t", 2), 0.0) == ([ATTEMPT], None)
    assert store.attempts(Stage.HELD) == [ATTEMPT]  # it is to be delivered again
    assert store.kept() == []
    store.close()


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "link.db"
    Store.open(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(NewerDatabaseError, match="version 99"):
        Store.open(path)
    assert [p.name for p in tmp_path.iterdir() if "broken" in p.name] == []


def test_a_damaged_page_sets_the_file_aside(tmp_path: Path) -> None:
    path = tmp_path / "link.db"
    store = Store.open(path)
    store.save([row_of(ATTEMPT)])
    store.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)
    path.write_bytes(raw)
    store = Store.open(path)
    assert store.attempts(*Stage) == []
    store.close()
    assert [p for p in tmp_path.iterdir() if ".broken-" in p.name]


def test_what_can_not_be_written_now_is_a_fault_and_not_damage(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "link.db")
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreFaultError):
        guarded(store.save, [row_of(ATTEMPT)])
    store.close()


def test_an_early_cancel_is_remembered_for_a_day(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "link.db")
    store.remember_cancel(ATTEMPT.key, "early", 1000.0)
    assert store.early_cancel(ATTEMPT.key, 1000.0 + 86399) == "early"
    assert store.early_cancel(ATTEMPT.key, 1000.0 + 86400) is None
    assert store.early_cancel(TaskKey("t", 2), 1000.0) is None
    store.close()


def test_a_tasks_reward_is_listed_once_and_with_its_delivery(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "link.db")
    store.set_fact("reward_total", "7")  # an earlier version's
    assert store.last_total() == 7
    store.add_reward(Reward("interval", "", 0.0, 30.0, 60.0, 60.0, 0.0, 12, 19))
    assert store.last_total() == 19
    for _ in range(2):
        store.save([row_of(ATTEMPT)], Reward("task", "t.1", 1.0, 2.0, 9.0, 9.0, 0.0, 8, 0))
    assert store._db.execute("SELECT COUNT(*) FROM rewards").fetchone()[0] == 2
    store.trim(30.0 + REWARDS_S + 1)
    assert store._db.execute("SELECT COUNT(*) FROM rewards").fetchone()[0] == 0
    store.close()
