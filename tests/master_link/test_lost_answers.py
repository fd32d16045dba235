"""Half of the master's answers are lost, or come too late: what it is told is the same as ever."""

import asyncio
import random
from collections import Counter
from itertools import groupby, pairwise
from typing import Any

import grpc
import pytest

from procs.master_link import core, master_edge, session
from shared import rewards
from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from tests.fakes.link_master import FakeMaster, key_of
from tests.master_link.rig import Rig, rig

CALL_S = 0.3
DETAILS = 4
KEYS = [TaskKey(f"t{number}", 1) for number in range(12)]
WORK = (TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING)


class Losses:
    """Each call is heard; then its answer is lost, or late, as the dice fall."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.told: dict[TaskKey, list[pb.TaskStatusRequest]] = {}
        self.running: Counter[TaskKey] = Counter()
        self.most_at_once = 0
        self.lost: Counter[str] = Counter()

    async def after(self, method: str, context: Any) -> None:
        thrown = self.dice.random()
        if thrown < 0.4:
            self.lost[method] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        elif thrown < 0.5:
            self.lost[method] += 1
            await asyncio.sleep(2 * CALL_S)

    async def status(
        self, master: FakeMaster, request: pb.TaskStatusRequest, context: Any
    ) -> pb.TaskStatusResponse:
        key = key_of(request)
        assert key not in master.memory.results, "a status after the result"
        self.told.setdefault(key, []).append(request)
        self.running[key] += 1
        self.most_at_once = max(self.most_at_once, self.running[key])
        try:
            await asyncio.sleep(self.dice.random() / 100)
        finally:
            self.running[key] -= 1
        await self.after("status", context)
        return pb.TaskStatusResponse(wanted=True)


def lossy(monkeypatch: pytest.MonkeyPatch, losses: Losses) -> None:
    def wrap(method: str) -> None:
        inner = getattr(FakeMaster, method)

        async def call(self: FakeMaster, request: Any, context: Any) -> Any:
            answer = await inner(self, request, context)
            await losses.after(method, context)
            return answer

        monkeypatch.setattr(FakeMaster, method, call)

    for method in ("SubmitTaskResult", "ReportNodeStatus", "RegisterNode", "QueryTaskOutput"):
        wrap(method)
    async def status(self: FakeMaster, request: Any, context: Any) -> pb.TaskStatusResponse:
        return await losses.status(self, request, context)

    monkeypatch.setattr(FakeMaster, "ReportTaskStatus", status)
    monkeypatch.setattr(core, "retry_s", lambda failures, uniform: 0.02 * uniform)
    monkeypatch.setattr(core, "PROGRESS_EVERY_S", 0.01)
    monkeypatch.setattr(session, "next_delay_s", lambda failures, uniform: 0.05 * uniform)
    monkeypatch.setattr(master_edge, "CALL_S", CALL_S)


async def live(r: Rig, key: TaskKey, dice: random.Random) -> None:
    """A task's life, with something new to say of each phase."""
    for phase in WORK:
        for number in range(DETAILS):
            r.executor.move(key, phase, detail=f"{phase} {number}")
            await asyncio.sleep(dice.random() / 10)
    r.executor.log(key).write(b"hello\n")
    r.executor.finish(key)


@pytest.mark.parametrize("number", [1])  # or range(100)
def test_each_phase_is_told_in_order_and_before_the_result_whatever_is_lost(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    dice = random.Random(number)
    losses = Losses(dice)
    lossy(monkeypatch, losses)

    async def scenario() -> None:
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            for key in KEYS:
                await r.assign(key)
            lives = [asyncio.create_task(live(r, key, dice)) for key in KEYS]
            await asyncio.sleep(0.5)
            await r.stop_link()
            r.master.channel = None
            await r.start_link()
            await asyncio.gather(*lives)
            for key in KEYS:
                await r.delivered(key)
            await r.until(lambda: r.link_state().undelivered_tasks == 0)
            await r.until(lambda: len(reports(r)) >= 3)
            check(r, losses)

    asyncio.run(scenario())
    assert losses.lost["status"] > 20
    assert losses.lost["SubmitTaskResult"] > 2


def reports(r: Rig) -> list[pb.NodeStatusRequest]:
    """Each once: the master knows one by where it begins."""
    known: dict[int, bytes] = {}
    for body in r.master.memory.reports:
        begin = getattr(pb.NodeStatusRequest.FromString(body), "from").ToNanoseconds()
        assert known.setdefault(begin, body) == body, "sent again, and not the same"
    return [pb.NodeStatusRequest.FromString(known[begin]) for begin in sorted(known)]


def check(r: Rig, losses: Losses) -> None:
    assert losses.most_at_once == 1
    for key in KEYS:
        told = losses.told[key]
        phases = [pb.TaskState.Name(status.state).removeprefix("TASK_STATE_") for status in told]
        assert [name for name, _ in groupby(phases)] == [phase.name for phase in WORK]
        spoken = [status.detail for status in told if status.detail]
        places = [(core.ORDER[TaskPhase(p)], int(n)) for p, n in map(str.split, spoken)]
        assert places == sorted(places), "an older detail after a newer one"
        assert len(set(r.master.memory.results[key])) == 1, "the same bytes each time"
    for before, after in pairwise(reports(r)):
        assert getattr(after, "from") == before.to
        assert after.reward_total == before.reward_total + rewards.of_report(after)
