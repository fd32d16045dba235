"""An engine without live-restore takes its containers with it: interrupted, and never run twice."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.kills import run
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def mortal(engine: PrivateEngine) -> Iterator[PrivateEngine]:
    own = PrivateEngine(Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp")))
    try:
        own.start("--no-live-restore")
        own.take_task_image(engine)
        yield own
    finally:
        own.stop("--purge")


def test_an_engine_without_live_restore_interrupts_its_tasks(mortal: PrivateEngine) -> None:
    executor = ExecutorAlone(mortal.host).start()
    try:
        key = executor.assign(task("sh", "-c", "echo up; sleep 300"))
        executor.wait(lambda: b"up" in executor.output(key), "up")
        # killed before it has noted that, the engine forgets the start, and the task runs on
        executor.wait(lambda: executor.inspect(key)["State"]["Running"], "the engine's word")
        mortal.kill()
        executor.wait(lambda: not executor.available(), "the engine known to be away")
        mortal.start("--no-live-restore")
        report = executor.wait_report(key)
        assert (report.phase, report.exit_code, report.cause) == ("failed", 143, "interrupted")
        assert executor.output(key) == b"up\n"
        executor.wait(lambda: executor.containers() == [], "no container left")
    finally:
        executor.stop()


def test_whenever_it_is_killed_no_task_runs_twice(mortal: PrivateEngine) -> None:
    seed = random.randrange(10**6)
    figures = run("mortal", mortal, 2, seed)
    assert figures.faults == [], f"seed {seed}"
