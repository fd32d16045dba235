"""A line that is cut, and ends that are killed, while logs and archives pass; the long form is
tests/bench/cuts.py."""

import asyncio
from pathlib import Path

import pytest

from tests.bench.cuts import KILL_LINK, KILL_MASTER, MOST_AGAIN_PCT, Plan, run, told
from tests.fakes.line import Load

LOAD = Load(log_bytes=100_000, output_bytes=1_500_000)


@pytest.mark.system
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(LOAD, tasks=6, cuts=8, seed=5), id="cut"),
        pytest.param(
            Plan(LOAD, 4, cuts=2, link_kills=2, master_kills=1, tls=True, seed=6, delay_s=0.0),
            id="cut and killed over TLS",
        ),
    ],
)
def test_all_arrives_once_and_byte_by_byte(tmp_path: Path, plan: Plan) -> None:
    figures = asyncio.run(run(plan, tmp_path / "master"))
    assert figures.faults == [], told(figures)
    assert figures.again_pct <= MOST_AGAIN_PCT, told(figures)
    harms = figures.harms  # the last one's byte may have passed before
    assert harms[KILL_LINK] >= min(plan.link_kills, 1)
    assert harms[KILL_MASTER] == plan.master_kills
    assert harms.total() >= plan.cuts + plan.link_kills + plan.master_kills - 1
