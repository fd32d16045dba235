"""link.db: its version, its damage, its full disk."""

import sqlite3
from pathlib import Path

import pytest

from procs.master_link.core import Attempt, Stage
from procs.master_link.store import Store, StoreFaultError, guarded, row_of
from shared.database import NewerDatabaseError
from shared.messages import StopReason, TaskPhase
from shared.pb import hivemind_pb2 as pb
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


def test_the_rewards_total_outlives_the_database(tmp_path: Path) -> None:
    path = tmp_path / "link.db"
    store = Store.open(path)
    assert store.add_report(pb.NodeStatusRequest(reward=12)) == 12
    store.close()
    path.write_bytes(b"no database")
    store = Store.open(path)
    assert store.reward_total() == 12
    assert store.add_report(pb.NodeStatusRequest(reward=8)) == 20
    store.close()
    (tmp_path / "reward.total").write_bytes(b"no number")
    store = Store.open(path)
    assert store.reward_total() == 20
    store.close()


def test_a_total_that_can_not_be_kept_counts_no_interval_twice(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "link.db")
    (tmp_path / "reward.total").mkdir()
    (tmp_path / ".reward.total.new").mkdir()
    assert store.add_report(pb.NodeStatusRequest(reward=12)) == 12
    assert store.reward_total() == 12
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


def test_a_report_that_was_sent_never_changes_and_unsent_ones_are_one(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "link.db")
    assert store.next_report("n") is None
    totals = [store.add_report(_report(number)) for number in range(2)]
    first = store.next_report("n")
    assert first is not None
    totals += [store.add_report(_report(number)) for number in range(2, 4)]
    assert totals == [10, 20, 30, 40]
    assert store.next_report("other") == first
    assert store.pending_reports == 2
    store.drop_report(first[0])
    rest = store.next_report("n")
    assert rest is not None
    told = [pb.NodeStatusRequest.FromString(body) for _, body in (first, rest)]
    assert [(t.node_id, t.reward, t.reward_total) for t in told] == [("n", 20, 20), ("n", 20, 40)]
    store.close()


def _report(number: int) -> pb.NodeStatusRequest:
    report = pb.NodeStatusRequest(reward=10)
    getattr(report, "from").FromSeconds(number * 30)
    report.to.FromSeconds(number * 30 + 30)
    return report
