"""Assignments by the channel and by the worker's port, either cut at any time, each sent several
times and in any order: every one that was accepted runs once and is delivered, and no other."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from procs.master_link import core, session
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import TaskKey
from tests.fakes.cutting_proxy import CuttingProxy
from tests.master_link.rig import Rig, request, rig

TASKS = 40
ANSWER_S = 1.0
CALM_S = 0.15  # between two faults, on average
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
)


@dataclass
class Master:
    """Gives tasks by whichever way the dice say, until it has heard an answer."""

    rig: Rig
    dice: random.Random
    port: Any = None
    accepted: set[TaskKey] = field(default_factory=set)
    refused: dict[TaskKey, str] = field(default_factory=dict)
    ways: Counter[str] = field(default_factory=Counter)

    async def give(self, key: TaskKey) -> None:
        """Some after it was accepted, again: an answer may cross another."""
        await asyncio.sleep(self.dice.random() * TASKS * 0.05)
        again = self.dice.randrange(3)
        while again >= 0:
            ways = self.dice.choice((["port"], ["channel"], ["port", "channel"]))
            answers = await asyncio.gather(*(self._ask(way, key) for way in ways))
            for way, answer in zip(ways, answers, strict=True):
                again -= answer is not None
                self._note(way, key, answer)
            await asyncio.sleep(self.dice.random() * 0.05)

    def _note(self, way: str, key: TaskKey, answer: pb.TaskAssignmentResponse | None) -> None:
        if answer is None:
            self.ways[f"no answer by {way}"] += 1
        elif answer.accepted:
            self.ways[way] += 1
            self.accepted.add(key)
        else:
            self.refused[key] = answer.reason

    async def _ask(self, way: str, key: TaskKey) -> pb.TaskAssignmentResponse | None:
        asked = request(key.task_id, key.attempt)
        try:
            if way == "port":
                answer: pb.TaskAssignmentResponse = await self.port.AssignTask(
                    asked, timeout=ANSWER_S
                )
                return answer
            if self.rig.master.channel is None:
                return None
            return await self.rig.master.assign(asked, ANSWER_S)
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, TimeoutError, AttributeError):
            return None  # the way was cut; it may have been heard


@asynccontextmanager
async def relay() -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy()
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


async def harm(dice: random.Random, channel: CuttingProxy, port: CuttingProxy) -> None:
    """One way, or the other, or both; cut, or closed for a while."""
    while True:
        await asyncio.sleep(2 * CALM_S * dice.random())
        for proxy in dice.choice(([channel], [port], [channel, port])):
            if dice.random() < 0.7:
                proxy.cut()
            else:
                await proxy.refuse()
                await asyncio.sleep(dice.random() * CALM_S)
                await proxy.start()


def once(r: Rig) -> Counter[TaskKey]:
    """How often the executor has begun each."""
    runs: Counter[TaskKey] = Counter()
    run = r.executor.run

    def counted(key: TaskKey) -> None:
        runs[key] += 1
        run(key)

    r.executor.run = counted  # type: ignore[method-assign]
    return runs


@pytest.mark.parametrize("number", range(2))
def test_two_ways_in_lose_nothing_and_double_nothing(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(core, "retry_s", lambda failures, uniform: 0.05 * uniform)
    monkeypatch.setattr(session, "next_delay_s", lambda failures, uniform: 0.05 * uniform)
    dice = random.Random(number)
    keys = [TaskKey(f"t{n}", 1) for n in range(TASKS)]
    newer = [TaskKey(key.task_id, 2) for key in keys[: TASKS // 4]]  # of tasks that have an older

    async def scenario() -> None:
        async with (
            relay() as to_master,
            relay() as to_worker,
            rig(runs=True, start=False, TASK_LISTEN="127.0.0.1:0") as r,
        ):
            to_master.target = ("127.0.0.1", r.master.port)
            r.master.seen_at = f"127.0.0.1:{to_master.port}"
            runs, master = once(r), Master(r, dice)
            await r.start_link()
            await r.until(lambda: r.link is not None and r.link.session.task_endpoint)
            assert r.link is not None
            host, _, port = r.link.session.task_endpoint.rpartition(":")
            to_worker.target = (host, int(port))
            await r.connected()
            address = f"127.0.0.1:{to_worker.port}"
            async with grpc.aio.insecure_channel(address, options=OPTIONS) as dialled:
                master.port = pb_grpc.TaskServiceStub(dialled)  # type: ignore[no-untyped-call]
                harming = asyncio.create_task(harm(dice, to_master, to_worker))
                await asyncio.gather(*(master.give(key) for key in [*keys, *newer]))
                harming.cancel()
                await asyncio.wait((harming,))
            for proxy in (to_master, to_worker):
                await proxy.refuse()
                await proxy.start()
            for key in master.accepted:
                await r.delivered(key)
            await r.until(lambda: r.link_state().undelivered_tasks == 0)
            check(r, master, runs, set(newer))

    asyncio.run(scenario())


def check(r: Rig, master: Master, runs: Counter[TaskKey], newer: set[TaskKey]) -> None:
    results = r.master.memory.results
    assert set(results) == master.accepted, "one was accepted and is lost, or the other way round"
    assert max(runs.values()) == 1, "one ran twice"
    assert all(len(set(sent)) == 1 for sent in results.values()), "the same bytes each time"
    for key in runs.keys() & master.accepted:
        result = pb.TaskResultRequest.FromString(results[key][0])
        if result.state == pb.TASK_STATE_SUCCEEDED:
            assert r.master.memory.log(key) == b"hello\n"
    assert newer <= master.accepted
    older = {TaskKey(key.task_id, 1) for key in newer}
    assert set(master.refused) <= older, master.refused
    assert min(master.ways["port"], master.ways["channel"]) > TASKS / 4, master.ways
    assert min(master.ways["no answer by port"], master.ways["no answer by channel"]) > 0
