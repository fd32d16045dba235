"""The node's own traffic: registration, heartbeats, reports, the two ways in, node state."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from procs.master_link import core, session
from procs.master_link.main import Link, incarnation
from shared import rewards
from shared.bus import Bus
from shared.messages import (
    Capacity,
    Engine,
    LinkPhase,
    NodePhase,
    OwnerWant,
    StopReason,
    TaskPhase,
)
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import TaskKey
from tests.master_link.rig import Rig, request, rig

KEY = TaskKey("t", 1)
TOKEN = f"hm1.{'a' * 52}.{'b' * 32}"


def parsed(report: bytes) -> pb.NodeStatusRequest:
    return pb.NodeStatusRequest.FromString(report)


def from_of(report: pb.NodeStatusRequest) -> int:
    return int(getattr(report, "from").ToNanoseconds())


def test_a_node_registers_with_what_it_is_and_keeps_its_name() -> None:
    async def scenario() -> None:
        async with rig(MASTER_JOIN_TOKEN=TOKEN) as r:
            first = r.master.memory.registrations[0]
            assert first.node_name == "test"
            assert first.join_token == TOKEN
            assert first.protocol_version == 1
            assert first.inventory.cpu_count == 4
            assert first.inventory.container_engine == "docker 20.10.24"
            assert r.link_state().node_id == "node-1"
            assert r.link_state().trust_level == 3
            await r.stop_link()
            await r.start_link()
            await r.until(lambda: len(r.master.memory.registrations) == 2)
            again = r.master.memory.registrations[1]
            assert again.node_id == "node-1"
            assert again.join_token == ""

    asyncio.run(scenario())


def test_heartbeats_name_what_is_held_at_once_and_their_sequence_grows() -> None:
    async def scenario() -> None:
        async with rig(start=False) as r:
            r.master.heartbeat_s = 60.0
            await r.start_link()
            await r.connected()
            await r.assign(KEY)
            beats = r.master.memory.heartbeats
            await r.until(lambda: [t.task_id for t in beats[-1].tasks] == ["t"])
            r.executor.run(KEY)
            await r.delivered(KEY)
            await r.until(lambda: not beats[-1].tasks)
            sequences = [beat.sequence for beat in beats]
            assert sequences == sorted(set(sequences))
            assert {beat.incarnation for beat in beats} == {beats[0].incarnation}
            assert beats[0].state == pb.NODE_STATE_READY

    asyncio.run(scenario())


def test_an_unknown_node_registers_again_and_keeps_its_tasks() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            r.master.heartbeat_answer = pb.HeartbeatResponse(reregister=True)
            await r.until(lambda: len(r.master.memory.registrations) == 2)
            assert KEY in r.executor.held
            r.executor.run(KEY)
            await r.delivered(KEY)

    asyncio.run(scenario())


def test_changed_hardware_registers_again() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.executor.engine = Engine(available=True, version="27.0", runtimes=("runc",))
            await r.until(lambda: len(r.master.memory.registrations) == 2)
            assert r.master.memory.registrations[1].inventory.container_engine == "docker 27.0"

    asyncio.run(scenario())


def test_a_channel_that_the_master_does_not_see_is_opened_again() -> None:
    async def scenario() -> None:
        async with rig() as r:
            assert r.master.memory.hellos == 1
            beats = len(r.master.memory.heartbeats)
            await r.until(lambda: len(r.master.memory.heartbeats) > beats + 1)
            assert r.master.memory.hellos == 1
            r.master.heartbeat_answer = pb.HeartbeatResponse(channel_open=False)
            await r.until(lambda: r.master.memory.hellos == 2)

    asyncio.run(scenario())


def test_a_node_that_is_not_taken_waits_and_says_why() -> None:
    async def scenario() -> None:
        async with rig(start=False) as r:
            r.master.accept_node = False
            await r.start_link()
            await r.until(lambda: r.link_state().phase is LinkPhase.WAITING)
            assert "waiting for approval; next try in 60 s" in r.link_state().detail

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        pytest.param("https://localhost:1", "refused", id="tls"),
        pytest.param("http://127.0.0.1:1", "refused", id="nothing there"),
    ],
)
def test_a_master_that_can_not_be_used_is_said_in_link_state(url: str, sentence: str) -> None:
    async def scenario() -> None:
        async with rig(start=False, MASTER_NODE_URL=url) as r:
            await r.start_link()
            await r.until(lambda: r.link_state().phase is LinkPhase.WAITING)
            assert sentence in r.link_state().detail

    asyncio.run(scenario())


def test_a_master_whose_discovery_is_away_is_found_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "next_delay_s", lambda failures, uniform: 0.05)

    async def scenario() -> None:
        async with rig() as r:
            await asyncio.to_thread(r.master._http.shutdown)
            r.master._http.server_close()
            await r.master.stop_grpc()
            await r.until(lambda: "refused" in r.link_state().detail)
            await r.master.start()
            await r.connected()

    asyncio.run(scenario())


# ------------------------------------------------------------------ the worker as a server


def test_the_same_calls_are_served_at_task_listen() -> None:
    async def scenario() -> None:
        async with rig(TASK_LISTEN="127.0.0.1:0") as r:
            await r.until(lambda: r.master.memory.registrations[-1].task_endpoint)
            address = r.master.memory.registrations[-1].task_endpoint
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = pb_grpc.TaskServiceStub(channel)  # type: ignore[no-untyped-call]
                assert (await stub.AssignTask(request())).accepted
                assert (await r.master.assign(request())).accepted
                cancelled = await stub.CancelTask(pb.TaskCancelRequest(task_id="t", attempt=1))
                assert cancelled.known
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.SubmitTaskResult(pb.TaskResultRequest())
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
                await _check_health_and_reflection(channel)

    asyncio.run(scenario())


async def _check_health_and_reflection(channel: grpc.aio.Channel) -> None:
    checks: Any = health_pb2_grpc.HealthStub(channel)
    health = await checks.Check(health_pb2.HealthCheckRequest(service="hivemind.v1.TaskService"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    answers = [a async for a in reflection.ServerReflectionInfo(iter(asked))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert "hivemind.v1.TaskService" in names


def test_a_caller_that_gives_up_does_not_undo_the_commit() -> None:
    async def scenario() -> None:
        async with rig() as r:
            assert r.link is not None
            caller = asyncio.create_task(r.link.desk.assign(request()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await r.until(lambda: KEY in r.executor.held)

    asyncio.run(scenario())


# ------------------------------------------------------------------ the node's state


def _engine_away(r: Rig) -> None:
    r.executor.engine = Engine(available=False, detail="no socket")


def _disk_full(r: Rig) -> None:
    r.executor.capacity = Capacity(cpus=8.0, memory_bytes=2**30, max_held=9, disk_full=True)


def _drained_by_master(r: Rig) -> None:
    r.master.heartbeat_answer = pb.HeartbeatResponse(desired_state=pb.NODE_STATE_DRAINING)


@pytest.mark.parametrize(
    ("fault", "state", "refusal"),
    [
        pytest.param(_engine_away, "DEGRADED", pb.REFUSAL_BUSY, id="engine away"),
        pytest.param(_disk_full, "DEGRADED", pb.REFUSAL_BUSY, id="disk full"),
        pytest.param(_drained_by_master, "DRAINING", pb.REFUSAL_DRAINING, id="draining"),
    ],
)
def test_a_node_that_should_not_takes_nothing_new_and_says_so(
    fault: Callable[[Rig], None], state: str, refusal: pb.Refusal
) -> None:
    async def scenario() -> None:
        async with rig(start=False) as r:
            r.master.heartbeat_s = 0.5 if fault is _drained_by_master else 60.0
            await r.start_link()
            await r.connected()
            fault(r)
            wanted = pb.NodeState.Value(f"NODE_STATE_{state}")
            if fault is not _drained_by_master:
                await r.until(lambda: r.master.memory.heartbeats[-1].state == wanted)
            await r.until(lambda: r.link_state().node_state == NodePhase[state])
            r.master.fail["Heartbeat"] = grpc.StatusCode.INTERNAL
            assert r.link is not None
            answer = await r.link.desk.assign(request())
            assert answer.refusal == refusal
            assert bool(answer.retry_after.seconds) == (refusal == pb.REFUSAL_BUSY)

    asyncio.run(scenario())


def test_the_owner_pauses_the_node_and_stops_a_task() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            web = Bus(r.home, "web")
            try:
                owner = OwnerWant(
                    at_s=time.monotonic(), wish=NodePhase.PAUSED, stopped_tasks=("t.1",)
                )
                while KEY not in r.master.memory.results:
                    web.publish(owner)
                    web.drain()
                    await asyncio.sleep(0.02)
                result = await r.delivered(KEY)
                assert result.state == pb.TASK_STATE_CANCELLED
                assert "owner" in result.error
                assert r.link_state().node_state is NodePhase.PAUSED
            finally:
                web.close()

    asyncio.run(scenario())


def test_a_start_does_not_lift_the_owners_pause() -> None:
    async def scenario() -> None:
        async with rig(start=False) as r:
            (r.home / "lib" / "owner.json").write_text('{"wish": "paused", "stopped_tasks": []}')
            await r.start_link()
            await r.connected()
            states = {beat.state for beat in r.master.memory.heartbeats}
            assert states == {pb.NODE_STATE_PAUSED}
            answer = await r.master.assign(request())
            assert answer.refusal == pb.REFUSAL_BUSY

    asyncio.run(scenario())


def test_a_start_does_not_lift_the_masters_wish_and_the_master_does() -> None:
    async def scenario() -> None:
        async with rig() as r:
            r.master.desired = pb.NODE_STATE_DRAINING
            await r.until(lambda: r.link_state().node_state is NodePhase.DRAINING)
            r.master.fail["Heartbeat"] = grpc.StatusCode.UNAVAILABLE  # silence lifts nothing
            await r.stop_link()
            link = await r.start_link()
            await r.until(lambda: r.link_state().phase is LinkPhase.WAITING)
            assert r.link_state().node_state is NodePhase.DRAINING
            assert (await link.desk.assign(request())).refusal == pb.REFUSAL_DRAINING
            await r.stop_link()
            r.master.fail.clear()
            r.master.desired = pb.NODE_STATE_READY
            await r.start_link()
            await r.until(lambda: r.link_state().node_state is NodePhase.READY)

    asyncio.run(scenario())


def test_without_news_of_the_executor_an_assignment_is_busy() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.executor.close()
            try:
                assert r.link is not None
                news = r.link.desk.news
                await r.until(lambda: news.task_state() is None)
                answer = await r.master.assign(request())
                assert answer.refusal == pb.REFUSAL_BUSY
                assert answer.retry_after.seconds > 0
            finally:
                type(r.executor).__init__(r.executor, r.home)

    asyncio.run(scenario())


# ------------------------------------------------------------------ reports


def test_reports_cover_time_without_gap_and_count_each_reward_once() -> None:
    async def scenario() -> None:
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            reports = r.master.memory.reports
            await r.until(lambda: len(reports) >= 2)
            first, second = parsed(reports[0]), parsed(reports[1])
            assert first.node_id == "node-1"
            assert first.to.ToNanoseconds() == from_of(second)
            assert first.average.cpu_percent == pytest.approx(60.0)
            assert first.peak.cpu_percent == pytest.approx(60.0)
            assert (first.reward, first.reward_total) == (12, 12)
            assert (second.reward, second.reward_total) == (12, 24)
            await r.until(lambda: r.link_state().unacknowledged_reports == 0)

    asyncio.run(scenario())


def test_a_report_that_is_not_taken_is_sent_again() -> None:
    """A master that lost its memory takes it once the node has registered."""

    async def scenario() -> None:
        async with rig(start=False, RESOURCE_REPORT_INTERVAL="1") as r:
            r.master.accept_report = False
            await r.start_link()
            reports = r.master.memory.reports
            await r.until(lambda: reports)
            r.master.accept_report = True
            await r.until(lambda: len(reports) >= 2)
            assert reports[0] == reports[1]

    asyncio.run(scenario())


def test_a_node_without_a_node_id_has_not_joined() -> None:
    async def scenario() -> None:
        async with rig(start=False) as r:
            r.master.nameless = True
            await r.start_link()
            await r.until(lambda: "no node_id" in r.link_state().detail)
            assert not (r.home / "lib" / "node.id").exists()

    asyncio.run(scenario())


def test_an_interval_that_was_sent_is_sent_again_identically_and_later_ones_are_merged() -> None:
    async def scenario() -> None:
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            r.master.fail["ReportNodeStatus"] = grpc.StatusCode.INTERNAL
            reports = r.master.memory.reports
            await r.until(lambda: len(reports) >= 1 and r.link_state().reward_total >= 36)
            await r.stop_link()
            r.master.fail.clear()
            seen = len(reports)
            await r.start_link()
            await r.until(lambda: len(reports) >= seen + 2)
            assert len(set(reports[: seen + 1])) == 1
            first, rest = parsed(reports[0]), parsed(reports[seen + 1])
            assert from_of(rest) == first.to.ToNanoseconds()
            assert rest.reward >= 24
            assert rest.reward_total == first.reward + rest.reward
            assert rest.average.cpu_percent == pytest.approx(60.0)

    asyncio.run(scenario())


def test_a_report_that_is_denied_is_sent_again_each_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(session, "REFUSED_RETRY_S", 0.05)  # the minute
        monkeypatch.setattr(core, "retry_s", lambda *_: 3600.0)  # as other errors are
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            r.master.fail["ReportNodeStatus"] = grpc.StatusCode.PERMISSION_DENIED
            reports = r.master.memory.reports
            await r.until(lambda: len(reports) >= 5)
            assert len(set(reports)) == 1
            r.master.fail.clear()
            await r.until(lambda: r.link_state().unacknowledged_reports == 0)

    asyncio.run(scenario())


# ------------------------------------------------------------------ link.db


def test_a_broken_database_costs_no_report_and_no_reward() -> None:
    async def scenario() -> None:
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            reports = r.master.memory.reports
            await r.until(lambda: len(reports) == 1)
            r.master.fail["ReportNodeStatus"] = grpc.StatusCode.INTERNAL
            await r.until(lambda: len(reports) >= 2 and r.link_state().reward_total >= 48)
            await r.stop_link()
            (r.home / "lib" / "link.db").write_bytes(b"not a database at all")
            r.master.fail.clear()
            again: list[bytes] = []
            r.master.memory.reports = again
            await r.start_link()
            await r.until(lambda: len(again) >= 3)
            assert again[0] == reports[1], "sent again, the same"
            told = [parsed(body) for body in (reports[0], *again)]
            for before, after in pairwise(told):
                assert from_of(after) == before.to.ToNanoseconds()
                assert after.reward_total == before.reward_total + after.reward
            assert all(rewards.of_report(report) == report.reward for report in told)

    asyncio.run(scenario())



@pytest.mark.parametrize("damage", [b"not a database at all", b""], ids=["garbage", "empty"])
def test_a_broken_database_is_set_aside_and_nothing_held_is_lost(damage: bytes) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            await r.assign(TaskKey("done", 1))
            r.executor.run(TaskKey("done", 1))
            await r.kept(TaskKey("done", 1))
            await r.stop_link()
            r.master.channel = None
            database = r.home / "lib" / "link.db"
            database.write_bytes(damage)
            await r.start_link()
            await r.connected()
            aside = list(database.parent.glob("link.db.broken-*"))
            assert bool(aside) == bool(damage)
            assert r.link_state().node_id == "node-1"
            r.executor.run(KEY)
            await r.delivered(KEY)
            again = await r.master.assign(request("done", 1, command=["other"]))
            assert again.refusal == pb.REFUSAL_INVALID

    asyncio.run(scenario())


def test_a_stop_outlives_a_restart() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.executor.close()
            assert r.link is not None
            await r.until(lambda: True)
            await r.master.assign(request())
            await r.master.cancel(KEY, "gone")
            await r.stop_link()
            type(r.executor).__init__(r.executor, r.home)
            link: Link = await r.start_link()
            await r.until(lambda: r.executor.want is not None and r.executor.want.tasks)
            assert r.executor.want is not None
            assert r.executor.want.tasks[0].stop is StopReason.CANCELLED
            assert link.desk.attempts[KEY].stop_detail == "gone"
            await r.until(lambda: r.executor.held[KEY].phase is TaskPhase.CANCELLED)

    asyncio.run(scenario())


def test_the_incarnation_is_the_parents() -> None:
    assert incarnation(1) == incarnation(1)
    assert len(incarnation(1)) == 16
