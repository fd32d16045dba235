"""A few hundred of what tests/bench/fuzz.py throws at a worker by the thousand; and a master whose
answers make no sense."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from procs.master_link import session
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from tests.bench import fuzz
from tests.fakes.any_message import any_message
from tests.master_link.rig import Rig, rig

KEY = TaskKey("t", 1)


def test_whatever_comes_is_answered_and_leaves_nothing() -> None:
    counts, _ = fuzz.run(400, number=7)
    assert sum(counts[way] for way in fuzz.WAYS) >= 400
    assert counts["accepted"] > 20
    assert counts["REFUSAL_INVALID"] > 20
    assert counts["no message"] > 20


def test_a_master_that_talks_nonsense_ends_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REFUSED_RETRY_S", 0.05)
    monkeypatch.setattr(session, "next_delay_s", lambda failures, uniform: 0.05 * uniform)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        r = runner.run(stack.enter_async_context(rig(RESOURCE_REPORT_INTERVAL="1")))

        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            any_message(pb.HeartbeatResponse),
            any_message(pb.NodeRegistrationResponse),
            any_message(pb.NodeStatusResponse),
        )
        def nonsense(
            beat: pb.HeartbeatResponse,
            registration: pb.NodeRegistrationResponse,
            report: pb.NodeStatusResponse,
        ) -> None:
            registration.accepted = True
            registration.node_id = registration.node_id or "node-1"
            runner.run(_answered(r, beat, registration, report))

        try:
            nonsense()
            runner.run(_works(r))
        finally:
            runner.run(stack.aclose())


async def _answered(
    r: Rig,
    beat: pb.HeartbeatResponse,
    registration: pb.NodeRegistrationResponse,
    report: pb.NodeStatusResponse,
) -> None:
    """The link has heard all of it, and lives."""
    assert r.link is not None
    beat.reregister = True
    r.master.report_answer = report
    r.master.registration_answer, r.master.heartbeat_answer = registration, beat
    r.link.session.heartbeat_due.set()
    await r.until(lambda: r.master.registration_answer is None)


async def _works(r: Rig) -> None:
    """Asked as ever, it takes a task and delivers it."""
    r.master.heartbeat_answer = pb.HeartbeatResponse(reregister=True)
    assert r.link is not None
    r.link.session.heartbeat_due.set()
    await r.until(lambda: r.link_state().trust_level == r.master.trust_level)
    await r.assign(KEY)
    r.executor.run(KEY)
    await r.delivered(KEY)
