"""Each state in which a killed process can leave an attempt's directory, and where it goes on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from procs.executor.attempt import Attempt
from procs.executor.claim import Start, settle, write_claim
from procs.executor.core import Step
from procs.executor.made import MADE, Made, write_made
from procs.executor.notes import GRANT, write_stop
from procs.executor.quota import Grant
from procs.executor.recovery import recover
from procs.executor.verdict import Stop
from shared.messages import PhaseAt, TaskPhase
from shared.taskdir import CLAIM, REPORT, RUN, SPEC, Report, Spec, TaskKey, write_record

BOOT = "00000000-0000-0000-0000-000000000001"
KEY = TaskKey("t", 1)
PREPARED = PhaseAt(phase=TaskPhase.PREPARING, at_unix_s=2.0)


def accepted(d: Path) -> None:
    write_record(d / SPEC, Spec(task_id="t", attempt=1, image="i", accepted_unix_s=1.0))


def claimable(d: Path) -> None:
    accepted(d)
    write_claim(d, Start(("true",), {}, 1, 1), os.getuid(), os.getgid())


def half_claimed(d: Path) -> None:
    accepted(d)
    (d / RUN).touch()


def settled(d: Path) -> None:
    claimable(d)
    assert settle(d)


def claimed(d: Path) -> None:
    claimable(d)
    (d / CLAIM / RUN).unlink()  # as the keeper does


def started(d: Path) -> None:
    claimed(d)
    (d / RUN).write_text(f"started unix_ns=1 monotonic_ns=1 boot_id={BOOT}\n")


def torn(d: Path) -> None:
    claimed(d)
    (d / RUN).write_text("started unix_ns=1 mono")


def reported(d: Path) -> None:
    started(d)
    report = Report(task_id="t", attempt=1, phase=TaskPhase.FAILED, finished_unix_s=5.0)
    write_record(d / REPORT, report)


def stopped(before: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(d: Path) -> None:
        before(d)
        write_stop(d, Stop(TaskPhase.CANCELLED, "why", 1, BOOT))

    return make


def garbled(name: str, before: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(d: Path) -> None:
        before(d)
        (d / name).write_bytes(b'{"task_id": NaN')

    return make


def found(tasks: Path, make: Callable[[Path], None]) -> list[Attempt]:
    (tasks / "t.1").mkdir()
    make(tasks / "t.1")
    return list(recover(tasks, {KEY: (PREPARED,)}, BOOT))


@pytest.mark.parametrize(
    ("make", "step"),
    [
        pytest.param(accepted, Step.WAITING, id="accepted"),
        pytest.param(half_claimed, Step.WAITING, id="killed while it made the claim"),
        pytest.param(claimable, Step.WAITING, id="a start may be under way: it is settled"),
        pytest.param(settled, Step.STARTING, id="settled before: the engine's list will tell"),
        pytest.param(claimed, Step.STARTING, id="a keeper has claimed it"),
        pytest.param(torn, Step.STARTING, id="its first word is torn"),
        pytest.param(started, Step.STARTING, id="it runs or ran"),
        pytest.param(reported, Step.DONE, id="reported"),
        pytest.param(stopped(accepted), Step.COLLECTING, id="stopped before it was prepared"),
        pytest.param(stopped(claimable), Step.COLLECTING, id="stopped before it was started"),
        pytest.param(stopped(claimed), Step.STOPPING, id="stopped while it starts"),
        pytest.param(stopped(started), Step.STOPPING, id="stopped while it runs"),
        pytest.param(stopped(reported), Step.DONE, id="stopped and reported"),
        pytest.param(garbled(SPEC, accepted), Step.COLLECTING, id="a spec that nobody can read"),
        pytest.param(garbled(REPORT, started), Step.STARTING, id="a report that nobody can read"),
        pytest.param(garbled(REPORT, accepted), Step.COLLECTING, id="such a one, and no run"),
        pytest.param(garbled("stop", started), Step.STARTING, id="a stop that nobody can read"),
    ],
)
def test_a_directory_says_where_to_go_on(
    tmp_path: Path, make: Callable[[Path], None], step: Step
) -> None:
    (attempt,) = found(tmp_path, make)
    assert attempt.step is step


@pytest.mark.parametrize("name", [SPEC, REPORT])
def test_what_nobody_can_read_is_said(tmp_path: Path, name: str) -> None:
    (attempt,) = found(tmp_path, garbled(name, accepted))
    assert attempt.failure is not None
    assert attempt.failure.cause == "node"
    assert "read" in attempt.failure.text


def test_after_recovery_a_start_that_was_under_way_can_not_take_effect(tmp_path: Path) -> None:
    found(tmp_path, claimable)
    assert not (tmp_path / "t.1" / CLAIM / RUN).exists()


def test_what_was_not_accepted_is_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, lambda d: None) == []
    assert list(recover(tmp_path, {}, BOOT, only=KEY)) == []


def test_one_that_the_disk_does_not_give_keeps_none_of_the_others(tmp_path: Path) -> None:
    for name in ("other.1", "t.1"):
        (tmp_path / name).mkdir()
    write_record(tmp_path / "other.1" / SPEC, Spec(task_id="other", attempt=1, image="i"))
    (tmp_path / "other.1" / RUN).mkdir()  # reading it is an error
    accepted(tmp_path / "t.1")
    assert [attempt.key for attempt in recover(tmp_path, {}, BOOT)] == [KEY]


def test_the_database_gives_only_history(tmp_path: Path) -> None:
    (attempt,) = found(tmp_path, started)
    assert [p.phase for p in attempt.phases] == ["preparing", "accepted"]
    (bare,) = recover(tmp_path, {}, BOOT)
    assert bare.step is attempt.step


@pytest.mark.parametrize("make", [accepted, half_claimed, claimable])
def test_what_the_database_knows_to_have_run_is_never_begun(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Its record was deleted, or cut to nothing."""
    (tmp_path / "t.1").mkdir()
    make(tmp_path / "t.1")
    ran = (PREPARED, PhaseAt(phase=TaskPhase.RUNNING, at_unix_s=3.0))
    (attempt,) = recover(tmp_path, {KEY: ran}, BOOT)
    assert attempt.step is Step.COLLECTING
    assert attempt.failure is not None
    assert "it ran, and its record" in str(attempt.failure)


def test_what_was_made_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "t.1").mkdir()
    started(tmp_path / "t.1")
    write_made(tmp_path / "t.1", Made(container_id="c1", stop_signal="SIGINT"))
    (attempt,) = recover(tmp_path, {}, BOOT)
    assert (attempt.container_id, attempt.stop_signal) == ("c1", "SIGINT")
    (tmp_path / "t.1" / MADE).write_bytes(b'{"container_id": "c')  # killed as it wrote
    (attempt,) = recover(tmp_path, {}, BOOT)
    assert attempt.container_id == ""


def test_what_it_was_given_is_kept(tmp_path: Path) -> None:
    (attempt,) = found(tmp_path, started)
    assert attempt.grant is None
    (tmp_path / "t.1" / GRANT).write_text(
        '{"cpus": 0.5, "memory_bytes": 2, "disk_bytes": 3, "processes": 4}'
    )
    (again,) = recover(tmp_path, {}, BOOT)
    assert again.grant == Grant(0.5, 2, 3, 4)


def test_a_spec_of_another_task_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "other.1").mkdir()
    accepted(tmp_path / "other.1")
    (attempt,) = recover(tmp_path, {}, BOOT)
    assert (attempt.key, attempt.step) == (TaskKey("other", 1), Step.COLLECTING)
