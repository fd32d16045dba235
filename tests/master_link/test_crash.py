"""master_link killed with SIGKILL, under a real supervisord: nothing is lost, nothing comes twice.

The fake master asserts by itself that no log record and no byte of output is sent twice.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
from collections.abc import AsyncIterator

import pytest

from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from tests.fakes.supervised import Supervised, supervised
from tests.master_link.rig import Rig, request, rig

KEY = TaskKey("t", 1)


@contextlib.asynccontextmanager
async def process(runs: bool = False, **settings: str) -> AsyncIterator[tuple[Rig, Supervised]]:
    """master_link as a process of its own; executor and master are fakes in this one."""
    async with rig(runs, start=False) as r:
        (r.home / "worker.conf").write_text(
            "".join(f"{name}={value}\n" for name, value in settings.items())
        )
        with supervised(
            ("master_link", "watchdog"), MASTER_NODE_URL=r.master.url, HIVEMIND_HOME=str(r.home)
        ) as worker:
            await r.connected()
            yield r, worker
            await asyncio.to_thread(worker.stop)
        log = (r.home / "log" / "master_link.log").read_text()
        assert "Traceback" not in log


def kill(worker: Supervised) -> None:
    os.kill(worker.pids()["master_link"], signal.SIGKILL)


async def killed(r: Rig, worker: Supervised) -> None:
    """Dead, and another one connected."""
    kill(worker)
    hellos = r.master.memory.hellos
    await r.until(lambda: r.master.memory.hellos > hellos and r.master.channel is not None)


def stored_phase(r: Rig) -> str:
    with contextlib.closing(
        sqlite3.connect(f"file:{r.home}/lib/link.db?mode=ro", uri=True)
    ) as database:
        rows = database.execute("SELECT phase_sent FROM attempts").fetchall()
    return str(rows[0][0]) if rows else ""


@pytest.mark.system
def test_killed_between_acceptance_and_delivery() -> None:
    async def scenario() -> None:
        async with process() as (r, worker):
            await r.assign(KEY)
            r.executor.move(KEY, TaskPhase.PREPARING)
            r.executor.move(KEY, TaskPhase.RUNNING)
            r.executor.log(KEY).write(b"first\n" * 50_000)
            await r.until(lambda: stored_phase(r) == "running")
            await r.until(lambda: KEY in r.master.memory.opened)
            await killed(r, worker)
            assert (await r.master.assign(request())).accepted
            r.executor.log(KEY).write(b"second\n")
            r.executor.move(KEY, TaskPhase.COLLECTING)
            r.executor.output = b"o" * 300_000
            r.executor.finish(KEY)
            result = await r.delivered(KEY)
            await r.kept(KEY)
            memory = r.master.memory
            assert result.state == pb.TASK_STATE_SUCCEEDED
            assert memory.states(KEY) == ["PREPARING", "RUNNING", "COLLECTING"]
            assert memory.log(KEY) == b"first\n" * 50_000 + b"second\n"
            assert len(memory.results[KEY]) == 1
            assert {m.node_id for m in memory.registrations[1:]} == {"node-1"}

    asyncio.run(scenario())


@pytest.mark.system
def test_killed_between_the_result_and_its_acknowledgement() -> None:
    async def scenario() -> None:
        async with process(runs=True) as (r, worker):

            def once(key: TaskKey) -> None:
                kill(worker)
                r.master.on_result = lambda key: None

            r.master.on_result = once
            assert (await r.master.assign(request())).accepted
            await r.delivered(KEY, times=2)
            await r.kept(KEY)
            memory = r.master.memory
            assert len(memory.results[KEY]) == 2
            assert memory.results[KEY][0] == memory.results[KEY][1]
            assert memory.log(KEY) == b"hello\n"

    asyncio.run(scenario())


@pytest.mark.system
def test_killed_while_assignments_come_in() -> None:
    """Whatever was accepted before the kill is held after it; the rest is taken the second time."""

    async def scenario() -> None:
        async with process() as (r, worker):
            keys = [TaskKey(f"t{number}", 1) for number in range(12)]
            asked = [asyncio.create_task(r.master.assign(request(k.task_id))) for k in keys]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            accepted = {task.result().task_id for task in asked if task.done()}
            await killed(r, worker)
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
            await r.until(lambda: accepted <= {key.task_id for key in r.executor.held})
            for key in keys:
                assert (await r.master.assign(request(key.task_id))).accepted
            await r.until(lambda: set(keys) == set(r.executor.held))
            for key in keys:
                r.executor.run(key)
            for key in keys:
                await r.kept(key)
            assert all(len(r.master.memory.results[key]) == 1 for key in keys)

    asyncio.run(scenario())


@pytest.mark.system
def test_no_kill_counts_a_reward_twice_or_leaves_a_gap() -> None:
    async def scenario() -> None:
        async with process(RESOURCE_REPORT_INTERVAL="1") as (r, worker):
            reports = r.master.memory.reports
            await r.until(lambda: len(set(reports)) >= 1)
            await killed(r, worker)
            await r.until(lambda: len(set(reports)) >= 3)
            told = [pb.NodeStatusRequest.FromString(raw) for raw in dict.fromkeys(reports)]
            total = 0
            for before, after in itertools.pairwise(told):
                assert before.to == getattr(after, "from")
            for report in told:
                total += report.reward
                assert report.reward_total == total

    asyncio.run(scenario())
