"""Jobs: in order within a lane, each after the loop has taken what the one before it found."""

import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from procs.executor.jobs import Jobs

ROOT = Path(__file__).parents[2]
DEADLINE_S = 10.0


@pytest.fixture
def jobs() -> Iterator[Jobs[str]]:
    made: Jobs[str] = Jobs(2, "test")
    yield made
    made.close()


def wait(jobs: Jobs[str]) -> None:
    assert select.select([jobs.fileno()], [], [], DEADLINE_S)[0], "no result came"


def one(jobs: Jobs[str]) -> list[tuple[object, str]]:
    wait(jobs)
    return list(jobs.results())


def test_a_result_wakes_the_loop_and_frees_the_lane(jobs: Jobs[str]) -> None:
    jobs.submit("a", lambda: "done")
    assert jobs.is_busy("a")
    assert one(jobs) == [("a", "done")]
    assert not jobs.is_busy("a")
    assert list(jobs.results()) == []


def test_a_job_sees_what_the_loop_learned_from_the_one_before_it(jobs: Jobs[str]) -> None:
    learned: list[str] = []
    jobs.submit("a", lambda: "first")
    jobs.submit("a", lambda: f"after {learned}")
    wait(jobs)
    for _, value in jobs.results():
        learned.append(value)
    assert one(jobs) == [("a", "after ['first']")]


def test_lanes_do_not_wait_for_each_other(jobs: Jobs[str]) -> None:
    gate = threading.Event()
    jobs.submit("hangs", lambda: str(gate.wait(DEADLINE_S)))
    jobs.submit("hangs", lambda: "second")
    jobs.submit("b", lambda: "b")
    assert one(jobs) == [("b", "b")]
    gate.set()
    assert one(jobs) == [("hangs", "True")]
    assert one(jobs) == [("hangs", "second")]


def test_a_job_may_tell_more_than_once(jobs: Jobs[str]) -> None:
    told = threading.Event()

    def work() -> str:
        jobs.post("a", "half")
        told.wait(DEADLINE_S)
        return "whole"

    jobs.submit("a", work)
    assert one(jobs) == [("a", "half")]
    assert jobs.is_busy("a")
    told.set()
    assert one(jobs) == [("a", "whole")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_job_did_not_handle_is_raised_in_the_loop(jobs: Jobs[str]) -> None:
    def broken() -> str:
        raise ZeroDivisionError("broken")

    jobs.submit("a", broken)
    wait(jobs)
    with pytest.raises(ZeroDivisionError, match="broken"):
        list(jobs.results())
    for thread in [t for t in threading.enumerate() if t.name == "test"]:
        thread.join(DEADLINE_S)  # its last words belong to this test


def test_a_job_that_hangs_does_not_keep_the_process() -> None:
    code = (
        "import threading; from procs.executor.jobs import Jobs;"
        " j = Jobs(2, 't'); e = threading.Event(); j.submit('a', e.wait); j.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, check=False)
    assert done.returncode == 0
