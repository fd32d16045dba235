"""The executor is killed at moments that chance decides; the long form is tests/bench/kills.py."""

import random

import pytest

from tests.bench.kills import Kills
from tests.fakes.executor_alone import ExecutorAlone
from tests.system.engine.private import PrivateEngine


@pytest.mark.docker
def test_whenever_it_is_killed_tasks_run_once_and_end_as_they_should(
    engine: PrivateEngine,
) -> None:
    assert engine.task_image
    seed = random.randrange(10**6)
    executor = ExecutorAlone(engine.host).start()
    try:
        figures = Kills(executor, 7, seed).run()
    finally:
        executor.stop()
    assert figures.faults == [], f"seed {seed}"
    assert figures.tasks >= 6
