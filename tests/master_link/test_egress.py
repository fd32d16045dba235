"""An assignment with EGRESS is answered by what the vpn process says, and when it said it."""

import asyncio
import time
from pathlib import Path

import pytest

from procs.master_link import news
from shared.bus import Bus
from shared.messages import VpnState
from shared.pb import hivemind_pb2 as pb
from tests.master_link.rig import Rig, request, rig

TASKS, INSTALLS = ("hm-eg12345600",), ("hm-egi12345600",)


class Vpn:
    """Its socket, and what it says there."""

    def __init__(self, home: Path) -> None:
        self._bus = Bus(home, "vpn")

    async def says(self, r: Rig, *bridges: str, synced: bool = True) -> None:
        """Until master_link has heard."""
        state = VpnState(at_s=time.monotonic(), covered_bridges=bridges, synced=synced)

        def heard() -> bool:
            self._bus.publish(state)
            self._bus.drain()
            assert r.link is not None
            return r.link._bus.inbox.latest["vpn.state"].get("vpn") == state

        await r.until(heard)

    def close(self) -> None:
        self._bus.close()


async def answer(r: Rig, task_id: str) -> tuple[bool, int, str]:
    said = await r.master.assign(request(task_id, network=pb.NETWORK_POLICY_EGRESS))
    return said.accepted, said.refusal, said.reason


def test_it_is_taken_only_where_a_network_for_tasks_is_covered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        async with rig() as r:
            vpn = Vpn(r.home)
            first = await answer(r, "a")
            assert first[:2] == (False, pb.REFUSAL_BUSY), "it may have begun just now"
            await vpn.says(r, *TASKS)
            assert (await answer(r, "b"))[0]
            await vpn.says(r, synced=False)
            restarted = await answer(r, "c")
            assert restarted[:2] == (False, pb.REFUSAL_BUSY)
            assert "not confirmed at this moment" in restarted[2]
            monkeypatch.setattr(news, "EGRESS_GRACE_S", 0.0)
            await vpn.says(r, *INSTALLS)
            only_installs = await answer(r, "d")
            assert only_installs[:2] == (False, pb.REFUSAL_FORBIDDEN)
            assert "not in force" in only_installs[2]
            await vpn.says(r, *TASKS, *INSTALLS)
            assert (await answer(r, "e"))[0]
            vpn.close()

    asyncio.run(run())


def test_silence_is_no_word() -> None:
    async def run() -> None:
        async with rig() as r:
            vpn = Vpn(r.home)
            await vpn.says(r, *TASKS)
            vpn.close()
            await r.until(lambda: r.link is not None and not r.link._news.egress_ready())
            assert (await answer(r, "a"))[:2] == (False, pb.REFUSAL_BUSY)

    asyncio.run(run())
