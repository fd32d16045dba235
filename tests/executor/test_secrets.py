"""Secrets of tasks that never ran: their files go with whatever ends them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.claim import Start, write_claim
from procs.executor.notes import write_stop
from procs.executor.verdict import Stop
from procs.master_link.disk import Disk
from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import SPEC, Spec, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

SECRET = b"Xq7vT2mK9sW4"
SECRETS = {"KEY": SECRET.decode()}


def holding(folder: Path) -> list[str]:
    """The files that have it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if SECRET in path.read_bytes())


@pytest.fixture
def alone(engine: PrivateEngine, tmp_path: Path) -> Iterator[ExecutorAlone]:
    """Its executor sees no engine: nothing that waits is ever begun."""
    made = ExecutorAlone(engine.host, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    yield made
    made.stop()


@pytest.mark.docker
def test_cancelled_while_it_waits(alone: ExecutorAlone) -> None:
    alone.start()
    key = alone.assign(task("true", name="waits"), SECRETS)
    alone.wait(lambda: alone.held(key), "it waits")
    assert holding(alone.directory(key)) == ["secrets"]
    alone.cancel(key)
    report = alone.wait_report(key)
    assert (report.phase, report.exit_code) == (TaskPhase.CANCELLED, -1)
    assert holding(alone.home) == []


@pytest.mark.docker
def test_the_executor_was_killed_with_the_claim_laid_out(alone: ExecutorAlone) -> None:
    """It had been told to stop as well: nothing will start it any more."""
    key = alone.assign(task("true", name="laid-out"), SECRETS)
    directory = alone.directory(key)
    write_claim(directory, Start(("true",), SECRETS, 1, 1), 0, 0)
    write_stop(directory, Stop(TaskPhase.CANCELLED, "the master cancelled it", 0, ""))
    assert holding(directory) == ["secrets", "start"]
    alone.start()
    assert alone.wait_report(key).phase is TaskPhase.CANCELLED
    assert holding(alone.home) == []


def test_the_link_was_killed_before_it_accepted(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    request = pb.TaskAssignmentRequest(task_id="t", attempt=1, secrets=SECRETS)
    disk = Disk(tmp_path)
    disk.commit(Spec(task_id="t", attempt=1, image="i"), request)
    directory = tmp_path / "tasks" / "t.1"
    assert holding(directory) == ["secrets"]
    (directory / SPEC).unlink()  # the last that is written
    assert Disk(tmp_path).accepted() == {}
    assert not directory.exists()


def test_a_delivered_attempt_is_kept_without(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    request = pb.TaskAssignmentRequest(task_id="t", attempt=1, secrets=SECRETS)
    disk = Disk(tmp_path)
    disk.commit(Spec(task_id="t", attempt=1, image="i"), request)
    disk.keep(TaskKey("t", 1))
    assert (tmp_path / "kept" / "t.1" / SPEC).exists()
    assert holding(tmp_path) == []
