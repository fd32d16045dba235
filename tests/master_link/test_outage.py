"""Half an hour without a master, tasks ending meanwhile: few knocks at its door, then all of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from procs.master_link import session
from shared import backoff, rewards
from shared.messages import LinkPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from tests.master_link.rig import rig

OUTAGE_S = 1800.0
FASTER = 400.0  # the link's waits pass so much faster; what it does in between does not
MOST_KNOCKS = 60
KEYS = [TaskKey(f"t{number}", 1) for number in range(30)]


class Clock:
    """Counts the link's waits, and makes them short."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    def next_delay_s(self, failures: int, uniform: float) -> float:
        delay_s = backoff.next_delay_s(failures, uniform)
        self.waited_s += delay_s
        return delay_s / FASTER


@dataclass
class Doors:
    """Where the master was; who connects is counted and sent away."""

    knocks: int = 0
    _servers: list[asyncio.Server] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def at(self, *ports: int) -> AsyncIterator[None]:
        for port in ports:
            self._servers.append(await asyncio.start_server(self._turn_away, "127.0.0.1", port))
        try:
            yield
        finally:
            for server in self._servers:
                server.close()
                await server.wait_closed()

    async def _turn_away(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.knocks += 1
        writer.close()


def test_after_half_an_hour_without_a_master_all_is_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, doors = Clock(), Doors()
    monkeypatch.setattr(session, "next_delay_s", clock.next_delay_s)

    async def scenario() -> None:
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            for key in KEYS:
                await r.assign(key)
            await r.master.close()
            async with doors.at(r.master.port, r.master.http_port):
                for number, key in enumerate(KEYS):
                    due_s = (number + 1) * OUTAGE_S / len(KEYS)
                    await r.until(lambda due_s=due_s: clock.waited_s >= due_s, 120.0)
                    r.executor.run(key)
                assert r.link_state().phase is not LinkPhase.CONNECTED
                assert r.link_state().undelivered_tasks == len(KEYS)
                assert not r.master.memory.results
            await r.master.start()
            for key in KEYS:
                result = await r.delivered(key)
                assert result.state == pb.TASK_STATE_SUCCEEDED
                assert r.master.memory.log(key) == b"hello\n"
                assert r.master.memory.states(key) == ["PREPARING", "RUNNING", "COLLECTING"]
                assert len(set(r.master.memory.results[key])) == 1
            await r.until(lambda: r.link_state().undelivered_tasks == 0)
            await r.until(lambda: r.link_state().unacknowledged_reports == 0)
            told = [pb.NodeStatusRequest.FromString(body) for body in r.master.memory.reports]
            for before, after in pairwise(told):
                assert getattr(after, "from") == before.to
                assert after.reward_total == before.reward_total + rewards.of_report(after)

    asyncio.run(scenario())
    assert 20 < doors.knocks < MOST_KNOCKS
