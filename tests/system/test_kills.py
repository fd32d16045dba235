"""kill -9 of everything, one at a time, and a task that does not notice."""

import hashlib
import select

import pytest

from tests.system.engine.private import PrivateEngine
from tests.system.restarts import each_killed_in_turn
from tests.system.whole import Master, Worker, processes_of, things, until, whole

pytestmark = [pytest.mark.docker, pytest.mark.system]

COUNTING = """
import os, sys, time
with open("/output/begun", "a") as file:
    file.write("x")
n = 0
while not os.path.exists("/output/stop"):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    n += 1
    time.sleep(0.1)
with open("/output/count", "w") as file:
    file.write(str(n))
sys.exit(7)
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def the_count_is_exact(master: Master, task_id: str) -> None:
    log, output = master.log(task_id), master.output(task_id)
    count = log["stdout"].count(b"\n")
    assert count > 20
    assert log["stdout"] == b"".join(b"out %d\n" % n for n in range(count))
    assert log["stderr"] == b"".join(b"err %d\n" % n for n in range(count))
    assert output.files == {"begun": digest("x"), "count": digest(str(count)), "stop": digest("")}
    assert output.sha256 == master.task(task_id)["output"]["sha256"]


def let_it_end(worker: Worker, task_id: str) -> None:
    (worker.home / "tasks" / f"{task_id}.1" / "output" / "stop").touch()


def test_every_program_killed_in_turn(engine: PrivateEngine) -> None:
    before = things(engine.host) if engine.task_image else None
    with whole(engine.host, engine.task_image) as (worker, master):
        task_id = master.submit("python3", "-c", COUNTING)
        until(lambda: master.is_running(task_id), "it runs")
        containers = worker.container_ids(engine.host)
        for restart in each_killed_in_turn(worker, engine):
            print(restart)
            assert restart.changed == set(), restart
        let_it_end(worker, task_id)
        task = master.ended(task_id)
        assert (task["state"], task["exit_code"], task["attempt"]) == ("failed", 7, 1)
        the_count_is_exact(master, task_id)
        until(lambda: worker.held() == [], "the directory is let go")
        assert [path.name for path in (worker.home / "kept").iterdir()] == [f"{task_id}.1"]
        assert things(engine.host) == before
        assert processes_of(containers) == []


APPENDING = 'echo ran >>/output/ran; echo up; sleep 0.5; echo "$(wc -l </output/ran)"'


@pytest.mark.parametrize("turn", range(3))
def test_a_start_that_dies_with_the_engine_is_never_a_second_run(
    engine: PrivateEngine, running: tuple[Worker, Master], turn: int
) -> None:
    worker, master = running
    task_ids = [master.submit("sh", "-c", APPENDING, cpus=0.2) for _ in range(4)]
    claims = [worker.home / "tasks" / f"{task_id}.1" / "claim" for task_id in task_ids]
    until(lambda: any(claim.exists() for claim in claims), "one is made ready", 0.001)
    select.select([], [], [], 0.05 * turn)  # at another point of it each time
    engine.kill()
    engine.start()
    for task_id in task_ids:
        task = master.ended(task_id)
        assert (task["state"], task["attempt"]) == ("succeeded", 1), task
        assert master.log(task_id)["stdout"] == b"up\n1\n"
