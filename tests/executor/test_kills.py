"""Each part is killed at moments that chance decides, and the executor at steps that it does not;
the long forms are tests/bench/kills.py and tests/bench/kill_points.py."""

import random

import pytest

from tests.bench.kill_points import SWEPT, swept
from tests.bench.kills import run
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker


@pytest.mark.parametrize(("whom", "kills"), [("executor", 5), ("supervisord", 2), ("engine", 2)])
def test_whenever_it_is_killed_tasks_run_once_and_end_as_they_should(
    engine: PrivateEngine, whom: str, kills: int
) -> None:
    assert engine.task_image
    seed = random.randrange(10**6)
    figures = run(whom, engine, kills, seed)
    assert figures.faults == [], f"seed {seed}"
    assert figures.tasks >= 6


def test_at_whichever_step_it_is_killed_the_task_runs_once(engine: PrivateEngine) -> None:
    assert engine.task_image
    with swept(engine) as sweep:
        for call, most in (("mkdir", 3), ("fsync", 9), ("rename", 3)):
            sweep.at(SWEPT[0], call, random.randint(1, most))
        assert sweep.tasks.run().faults == [], sweep.points
        assert len(sweep.points) == 3
