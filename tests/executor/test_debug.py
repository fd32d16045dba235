"""What is left of failed attempts: taken over whole, bounded, and never in the way."""

import json
import math
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from procs.executor import debug
from procs.executor.attempt import Attempt
from procs.executor.debug import Debug
from shared.files import remove_tree
from shared.messages import TaskPhase
from shared.taskdir import MIB, Report, Spec, write_record

INSPECTED = {"State": {"OOMKilled": True, "ExitCode": 137}}


def ended(home: Path, name: str, phase: TaskPhase = TaskPhase.FAILED, size: int = 10) -> Attempt:
    """An attempt as it lies there before its container is removed."""
    directory = home / "tasks" / f"{name}.1"
    (directory / "output" / "d").mkdir(parents=True)
    (directory / "output" / "d" / "file").write_bytes(b"x" * size)
    (directory / "run").write_bytes(b"ended 1\n")
    (directory / "log").write_bytes(b"stays")
    report = Report(task_id=name, attempt=1, phase=phase)
    write_record(directory / "report", report)
    attempt = Attempt(Spec(task_id=name, attempt=1, image="i"), directory)
    attempt.report = report
    return attempt


def kept(home: Path) -> list[str]:
    folder = home / "debug"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def keep(store: Debug, attempt: Attempt, inspected: dict[str, Any] | None = None) -> None:
    assert store.wants(attempt)
    store.keep(attempt, inspected or INSPECTED)


def age(home: Path, name: str, hours: float) -> None:
    at = time.time() - hours * 3600
    os.utime(home / "debug" / f"{name}.1", (at, at))


def test_it_holds_what_a_person_needs_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    attempt = ended(tmp_path, "a")
    inode = (attempt.directory / "output" / "d" / "file").stat().st_ino
    keep(Debug(tmp_path, 24), attempt)
    folder = tmp_path / "debug" / "a.1"
    assert sorted(p.name for p in folder.iterdir()) == ["inspect.json", "output", "report", "run"]
    assert json.loads((folder / "inspect.json").read_text()) == INSPECTED
    assert (folder / "output" / "d" / "file").stat().st_ino == inode
    assert (folder / "run").read_bytes() == b"ended 1\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in attempt.directory.iterdir()) == ["log", "report", "run"]


@pytest.mark.parametrize(
    ("phase", "hours", "wanted"),
    [
        (TaskPhase.FAILED, 24, True),
        (TaskPhase.OUT_OF_MEMORY, 24, True),
        (TaskPhase.OUT_OF_DISK, 24, True),
        (TaskPhase.TIMED_OUT, 24, True),
        (TaskPhase.CANCELLED, 24, False),
        (TaskPhase.SUCCEEDED, 24, False),
        (TaskPhase.FAILED, 0, False),
    ],
)
def test_what_is_worth_it(tmp_path: Path, phase: TaskPhase, hours: float, wanted: bool) -> None:
    assert Debug(tmp_path, hours).wants(ended(tmp_path, "a", phase)) is wanted


@pytest.mark.parametrize("done", ["nothing", "folder", "inspect", "output"])
def test_killed_in_between_it_is_done_again(tmp_path: Path, done: str) -> None:
    attempt = ended(tmp_path, "a")
    folder = tmp_path / "debug" / "a.1"
    if done != "nothing":
        folder.mkdir(parents=True)
    if done in ("inspect", "output"):
        (folder / "inspect.json").write_text(json.dumps(INSPECTED))
    if done == "output":
        (attempt.directory / "output").rename(folder / "output")
    Debug(tmp_path, 24).keep(attempt, None if done == "output" else INSPECTED)
    assert json.loads((folder / "inspect.json").read_text()) == INSPECTED
    assert (folder / "output" / "d" / "file").exists()
    assert not (attempt.directory / "output").exists()


def test_an_older_task_of_that_name_gives_way(tmp_path: Path) -> None:
    store = Debug(tmp_path, 24)
    keep(store, ended(tmp_path, "a", size=10))
    remove_tree(tmp_path / "tasks")
    keep(store, ended(tmp_path, "a", size=20))
    assert (tmp_path / "debug" / "a.1" / "output" / "d" / "file").stat().st_size == 20


def test_the_oldest_goes_when_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debug, "MOST_BYTES", 2 * MIB)
    store = Debug(tmp_path, 24)
    for number, name in enumerate(("a", "b", "c")):
        keep(store, ended(tmp_path, name, size=MIB * 3 // 4))
        age(tmp_path, name, 3 - number)
    assert kept(tmp_path) == ["b.1", "c.1"]
    keep(store, ended(tmp_path, "giant", size=3 * MIB))
    assert kept(tmp_path) == ["b.1", "c.1"]


def test_a_sparse_giant_counts_as_what_it_takes(tmp_path: Path) -> None:
    attempt = ended(tmp_path, "a")
    os.truncate(attempt.directory / "output" / "d" / "file", 1 << 40)
    keep(Debug(tmp_path, 24), attempt)
    assert kept(tmp_path) == ["a.1"]


def test_it_is_trimmed_by_age_and_only_while_there_is_something(tmp_path: Path) -> None:
    store = Debug(tmp_path, 24)
    assert store.due_s <= time.monotonic()  # at the start
    store.trim()
    assert store.due_s == math.inf
    for name in ("old", "new"):
        keep(store, ended(tmp_path, name))
    age(tmp_path, "old", 25)
    (tmp_path / "debug" / "notes of the owner").mkdir()
    assert time.monotonic() < store.due_s < math.inf
    store.trim()
    assert kept(tmp_path) == ["new.1", "notes of the owner"]
    Debug(tmp_path, 0).trim()
    assert kept(tmp_path) == ["notes of the owner"]


def test_no_room_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt = ended(tmp_path, "a")
    (tmp_path / "debug").write_bytes(b"in the way")
    Debug(tmp_path, 24).keep(attempt, INSPECTED)
    assert "a.1: its debug data is not kept whole" in caplog.text


def test_what_a_life_before_kept_is_found(tmp_path: Path) -> None:
    keep(Debug(tmp_path, 24), ended(tmp_path, "a"))
    age(tmp_path, "a", 2)
    later = Debug(tmp_path, 1)
    later.trim()
    assert kept(tmp_path) == []


def test_it_is_trimmed_once_when_the_disk_has_run_full(tmp_path: Path) -> None:
    store = Debug(tmp_path, 24)
    store.trim()
    assert not store.is_due(1e9, disk_full=True)  # there is nothing
    keep(store, ended(tmp_path, "a"))
    now_s = time.monotonic()
    assert not store.is_due(now_s, disk_full=False)
    assert store.is_due(now_s, disk_full=True)
    store.trim()
    assert not store.is_due(now_s, disk_full=True)
