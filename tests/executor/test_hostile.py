"""A hostile task on a real engine: all that it tries fails, and a good task runs right after.

`pytest -s` prints the table. Attacks on the keeper's own promises: test_keeper_attacks.py.
"""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from procs.watchdog.core import SILENT_TICKS
from tests.executor.attacks import ATTACKS
from tests.executor.bombs import BOMBS
from tests.executor.hostile_kit import (
    Bombed,
    Row,
    attack_all,
    outside,
    own,
    processes_left,
    table,
)
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


@pytest.fixture(scope="module")
def attacked(executor: ExecutorAlone) -> dict[str, Row]:
    """All attacks, with all that lies outside compared before and after."""
    with outside(executor, "beside-attacks") as around:
        before = around.state()
        rows = attack_all(executor, around.targets)
        assert around.state() == before
    print(f"\n{table(rows)}")
    return {row.name: row for row in rows}


@pytest.fixture(scope="module")
def bombed(executor: ExecutorAlone) -> Bombed:
    with outside(executor, "beside-bombs") as around:
        before = around.state()
        found = Bombed(executor)
        assert around.state() == before
    print(f"\n{table(found.rows())}")
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_fails(attacked: dict[str, Row], name: str) -> None:
    assert attacked[name].blocked, attacked[name].outcome


@pytest.mark.parametrize("name", BOMBS)
def test_the_bomb_harms_only_its_own_task(bombed: Bombed, name: str) -> None:
    assert bombed.faults(name) == []


def test_the_executor_outlives_them_all_and_goes_on_beating(bombed: Bombed) -> None:
    assert len(bombed.pids) == 1
    gaps_s = [later - earlier for earlier, later in pairwise(bombed.beats_s)]
    assert max(gaps_s) < SILENT_TICKS


def test_nothing_of_them_is_left(executor: ExecutorAlone, bombed: Bombed) -> None:
    executor.wanted.clear()
    executor.wait(lambda: executor.containers() == [], "no container left")
    executor.wait(lambda: (state := executor.state()) and not state.tasks, "all released")
    assert processes_left() == []


def test_a_good_task_runs_right_after(executor: ExecutorAlone, bombed: Bombed) -> None:
    key = executor.assign(task("sh", "-c", "echo fine; echo fine > /output/x", name=own("good")))
    report = executor.wait_report(key)
    assert (report.phase, report.output_files) == ("succeeded", 1)
    assert executor.output(key) == b"fine\n"
