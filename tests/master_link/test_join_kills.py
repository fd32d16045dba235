"""Killed while it joins or renews, and still one node; all steps: tests/bench/join_kills.py."""

import asyncio
from pathlib import Path

from tests.bench.join_kills import swept


def test_at_whichever_step_of_joining_it_is_killed_it_is_one_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with swept(tmp_path / "master") as sweep:
            await sweep.at("fsync", ".node.id.new")  # the master has answered, nothing is kept
            await sweep.at("rename", "node.crt.new")
            assert sweep.faults == []
            assert len(await sweep.master.nodes()) == 2

    asyncio.run(scenario())


def test_at_whichever_step_of_a_renewal_it_is_killed_it_is_the_same_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with swept(tmp_path / "master") as sweep:
            await sweep.renewing_at("fsync", ".master-ca.crt.new")  # nothing new counts yet
            await sweep.renewing_at("rename", "node.crt.new")  # the new authority is trusted
            assert sweep.faults == []

    asyncio.run(scenario())
