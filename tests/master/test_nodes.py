"""Nodes as the contract has them: joining, heartbeats, reports, the channel, being dialled."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc.aio import EOF  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from procs.master import grpc_edge
from procs.master.main import Addresses
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from tests.fakes.running_master import Http, with_master
from tests.fakes.toy_worker import Play, ToyWorker, accepted, refused

WAIT_S = 10.0


def test_a_node_joins_and_keeps_its_id(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc, labels={"zone": "eu"}) as worker:
            first = worker.node_id
            answer = await worker.register()
        assert answer.accepted
        assert answer.node_id == first
        assert answer.trust_level == 2
        assert answer.heartbeat_interval.seconds == 10
        assert answer.report_interval.seconds == 30
        (node,) = (await http.get("/api/v1/nodes"))["nodes"]
        assert node["node_id"] == first
        assert node["inventory"]["labels"] == {"zone": "eu"}

    with_master(tmp_path, scenario, trust_level=2)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        pytest.param(
            pb.NodeRegistrationRequest(protocol_version=2), "protocol_version is 2", id="version"
        ),
        pytest.param(
            pb.NodeRegistrationRequest(protocol_version=1, join_token="hm1.a.b"),
            "join token",
            id="token",
        ),
        pytest.param(
            pb.NodeRegistrationRequest(protocol_version=1, node_id="../x"), "node_id", id="id"
        ),
    ],
)
def test_a_node_is_refused_with_a_reason(
    tmp_path: Path, request_: pb.NodeRegistrationRequest, reason: str
) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        worker = ToyWorker(addresses.grpc)
        answer = await worker.nodes.RegisterNode(request_, timeout=WAIT_S)
        assert not answer.accepted
        assert reason in answer.reason
        await worker.__aexit__(None, None, None)

    with_master(tmp_path, scenario)


def test_an_unknown_node_is_told_to_register_and_keeps_its_id(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        worker = ToyWorker(addresses.grpc, node_id="node-of-old")
        assert (await worker.beat()).reregister
        await worker.open_channel()
        assert worker.hello is not None
        assert worker.hello.reregister
        report = await worker.nodes.ReportNodeStatus(
            pb.NodeStatusRequest(node_id="node-of-old"), timeout=WAIT_S
        )
        assert not report.accepted
        assert (await worker.register()).node_id == "node-of-old"
        assert not (await worker.beat()).reregister
        await worker.__aexit__(None, None, None)

    with_master(tmp_path, scenario)


def test_a_task_missing_from_two_heartbeats_in_a_row_is_assigned_again(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            await http.submit(task_id="t")
            await worker.assigned.get()
            await http.until("t", "accepted")
            worker.answer = refused(pb.REFUSAL_BUSY)  # so that an early one would show
            await worker.beat(without=[("t", 1)])  # it crossed the assignment
            await worker.beat()
            await worker.beat(without=[("t", 1)])
            await http.submit(task_id="later")  # it is placed: the loop has gone round
            assert (await asyncio.wait_for(worker.assigned.get(), WAIT_S)).task_id == "later"
            assert (await http.task("t"))["state"] == "accepted"
            await worker.beat(without=[("t", 1)])
            again = await asyncio.wait_for(worker.assigned.get(), WAIT_S)
            assert (again.task_id, again.attempt) == ("t", 1)

    with_master(tmp_path, scenario)


def test_the_same_heartbeat_twice_counts_once(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            await http.submit(task_id="t")
            await worker.assigned.get()
            await http.until("t", "accepted")
            beat = pb.HeartbeatRequest(
                node_id=worker.node_id, sequence=99, incarnation="one", state=pb.NODE_STATE_READY
            )
            await worker.nodes.Heartbeat(beat, timeout=WAIT_S)
            await worker.nodes.Heartbeat(beat, timeout=WAIT_S)
            assert (await http.task("t"))["state"] == "accepted"
            assert worker.assigned.empty()

    with_master(tmp_path, scenario)


def test_an_unanswered_offer_counts_as_accepted_once_a_heartbeat_names_it(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        worker = ToyWorker(addresses.grpc)
        await worker.register()
        await worker.beat()
        await http.submit(task_id="t")
        await http.until("t", "offered")
        worker.held["t", 1] = pb.TaskAssignmentRequest()
        await worker.beat()
        await http.until("t", "accepted")
        await worker.__aexit__(None, None, None)

    with_master(tmp_path, scenario)


def test_forget_names_only_what_has_ended(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            await http.submit(task_id="ended")
            await worker.deliver(await worker.assigned.get(), Play())
            await http.submit(task_id="live")
            await worker.assigned.get()
            for key in (("ended", 1), ("unknown", 1), ("live", 7)):
                worker.held[key] = pb.TaskAssignmentRequest()
            forget = (await worker.beat()).forget
            assert [(ref.task_id, ref.attempt) for ref in forget] == [("ended", 1)]

    with_master(tmp_path, scenario)


def test_a_heartbeat_says_whether_the_channel_is_open(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            assert worker.hello is not None
            assert worker.hello.channel_open
            assert (await worker.beat()).channel_open
            await worker.close_channel()
            async with asyncio.timeout(WAIT_S):
                while (answer := await worker.beat()).channel_open:
                    pass
            assert answer.HasField("channel_open")

    with_master(tmp_path, scenario)


def test_a_node_hears_what_state_the_master_wants(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            path = f"/api/v1/nodes/{worker.node_id}/desired-state"
            assert (await http.call("PUT", path, data="draining")).status_code == 204
            assert (await worker.beat()).desired_state == pb.NODE_STATE_DRAINING
            assert (await http.call("PUT", path, data="gone")).status_code == 400

    with_master(tmp_path, scenario)


def test_a_node_that_is_not_ready_is_given_nothing(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            worker.state = pb.NODE_STATE_DRAINING
            await worker.beat()
            await http.submit(task_id="t")
            task = await http.until("t", "waiting")
            assert task["detail"] == "no node takes tasks now"
            worker.state = pb.NODE_STATE_READY
            await worker.beat()
            await http.until("t", "accepted")

    with_master(tmp_path, scenario)


def test_a_report_counts_once_for_each_interval(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            report = pb.NodeStatusRequest(node_id=worker.node_id, reward=8, reward_total=8)
            getattr(report, "from").seconds = 100
            report.to.seconds = 130
            for _ in range(2):
                answer = await worker.nodes.ReportNodeStatus(report, timeout=WAIT_S)
                assert answer.accepted
            (node,) = (await http.get("/api/v1/nodes"))["nodes"]
            assert node["reward_total"] == 8
            assert node["report"]["reward"] == "8"

    with_master(tmp_path, scenario)


@pytest.mark.parametrize(
    ("claimed", "usage", "earned"),
    [
        pytest.param(99, pb.ResourceUsage(), 8, id="more than the formula gives"),
        pytest.param(8, pb.ResourceUsage(cpu_percent=float("nan")), 0, id="no number"),
        pytest.param(
            8, pb.ResourceUsage(gpus=[pb.GpuUsage(utilization_percent=1e300)]), 0, id="1e300"
        ),
        pytest.param(8, pb.ResourceUsage(memory_percent=-1.0), 0, id="less than nothing"),
    ],
)
def test_what_a_node_claims_is_reckoned_again(
    tmp_path: Path, claimed: int, usage: pb.ResourceUsage, earned: int
) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            report = pb.NodeStatusRequest(
                node_id=worker.node_id, average=usage, reward=claimed, reward_total=10**12
            )
            report.to.seconds = 30
            assert (await worker.nodes.ReportNodeStatus(report, timeout=WAIT_S)).accepted
            (node,) = (await http.get("/api/v1/nodes"))["nodes"]
            assert (node["reward_total"], node["rewards_wrong"]) == (earned, 1)

    with_master(tmp_path, scenario)


def test_a_report_of_several_intervals_earns_what_each_of_them_does(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            report = pb.NodeStatusRequest(node_id=worker.node_id, reward=8 + 15)
            report.reward_bases.add()
            report.reward_bases.add(cpu_percent=100.0, memory_percent=100.0)
            report.to.seconds = 60
            assert (await worker.nodes.ReportNodeStatus(report, timeout=WAIT_S)).accepted
            (node,) = (await http.get("/api/v1/nodes"))["nodes"]
            assert (node["reward_total"], node["rewards_wrong"]) == (23, 0)

    with_master(tmp_path, scenario)


def test_a_tasks_reward_is_what_the_formula_gives(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            worker.play = lambda _: Play()
            honest = worker.result
            worker.result = lambda *a: _with_reward(honest(*a), 10**9)  # type: ignore[method-assign]
            await http.submit(task_id="t")
            assert (await http.until("t", "succeeded"))["reward"] == 8
            (node,) = (await http.get("/api/v1/nodes"))["nodes"]
            assert node["rewards_wrong"] == 1

    with_master(tmp_path, scenario)


def _with_reward(result: pb.TaskResultRequest, reward: int) -> pb.TaskResultRequest:
    result.reward = reward
    return result


# ------------------------------------------------------------------ the channel


def test_hello_comes_first(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            stream = worker.nodes.OpenChannel()
            await stream.write(pb.NodeMessage(assigned=pb.TaskAssignmentResponse()))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    with_master(tmp_path, scenario)


def test_a_newer_channel_replaces_the_older(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            older = worker._stream
            await worker.open_channel()
            assert await asyncio.wait_for(older.code(), WAIT_S) is grpc.StatusCode.OK
            await http.submit(task_id="t")
            await http.until("t", "accepted")
            assert (await worker.beat()).channel_open

    with_master(tmp_path, scenario)


def test_a_message_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with (
            ToyWorker(addresses.grpc) as worker,
            grpc.aio.insecure_channel(addresses.grpc) as raw,
        ):
            dialler: Any = raw
            open_channel = dialler.stream_stream("/hivemind.v1.NodeService/OpenChannel")
            stream = open_channel()
            hello = pb.HeartbeatRequest(node_id=worker.node_id, state=pb.NODE_STATE_READY)
            await stream.write(pb.NodeMessage(hello=hello).SerializeToString())
            await stream.read()
            await stream.write(b"\xff\xff\xff")
            await http.submit(task_id="t")
            message = pb.MasterMessage.FromString(await asyncio.wait_for(stream.read(), WAIT_S))
            answer = pb.NodeMessage(assigned=accepted(message.assign))
            await stream.write(answer.SerializeToString())
            await http.until("t", "accepted")
            await stream.done_writing()

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ dialling


class Served(pb_grpc.TaskServiceServicer):
    """A worker's own port."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def AssignTask(self, request: Any, context: Any) -> pb.TaskAssignmentResponse:
        self.calls.append("assign")
        return accepted(request)

    async def CancelTask(self, request: Any, context: Any) -> pb.TaskCancelResponse:
        self.calls.append("cancel")
        return pb.TaskCancelResponse(task_id=request.task_id, attempt=request.attempt)


def test_a_node_with_an_endpoint_is_dialled(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        served = Served()
        server = grpc.aio.server()
        pb_grpc.add_TaskServiceServicer_to_server(served, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with ToyWorker(addresses.grpc, endpoint=f"127.0.0.1:{port}") as worker:
            await http.submit(task_id="t")
            await http.until("t", "accepted")
            await http.cancel("t")
            await http.until("t", "cancelled")
            assert served.calls == ["assign", "cancel"]
            await server.stop(None)
            await http.submit(task_id="u")  # it cannot be dialled: the channel serves
            await http.until("u", "accepted")
            assert ("u", 1) in worker.held

    with_master(tmp_path, scenario)


def test_an_address_that_swallows_all_does_not_hold_up_the_next_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one behind a tunnel that is down does."""
    caplog.set_level("INFO", "master")
    monkeypatch.setattr(grpc_edge, "DIAL_TIMEOUT_S", 1.0)

    async def scenario(addresses: Addresses, http: Http) -> None:
        with socket.create_server(("127.0.0.1", 0)) as swallows:
            endpoint = f"127.0.0.1:{swallows.getsockname()[1]}"
            async with ToyWorker(addresses.grpc, endpoint=endpoint) as worker:
                for task_id in ("t", "u"):
                    await http.submit(task_id=task_id)
                    await http.until(task_id, "accepted")
                assert worker.held.keys() == {("t", 1), ("u", 1)}
            swallows.accept()[0].close()
        assert caplog.text.count("does not answer at its address") == 1

    with_master(tmp_path, scenario)


def test_an_endpoint_that_is_not_on_this_machine_is_not_dialled(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc, endpoint="192.0.2.1:5000"):
            await http.submit(task_id="t")
            await http.until("t", "accepted")

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ refusals


def test_a_busy_node_is_asked_again_and_another_one_meanwhile(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as busy:
            busy.answer = refused(pb.REFUSAL_BUSY, retry_after_s=1)
            await http.submit(task_id="t")
            await asyncio.wait_for(busy.assigned.get(), WAIT_S)
            await asyncio.wait_for(busy.assigned.get(), WAIT_S)  # after retry_after
            async with ToyWorker(addresses.grpc) as free:
                await http.until("t", "accepted")
                assert ("t", 1) in free.held

    with_master(tmp_path, scenario)


@pytest.mark.parametrize(
    "refusal", [pb.REFUSAL_TOO_LARGE, pb.REFUSAL_FORBIDDEN], ids=["too large", "forbidden"]
)
def test_a_task_that_every_node_refuses_fails_with_the_reason(tmp_path: Path, refusal: int) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as one, ToyWorker(addresses.grpc) as two:
            one.answer = two.answer = refused(refusal, "resources.cpus is 99")
            await http.submit(task_id="t")
            task = await http.until("t", "failed")
            assert "resources.cpus is 99" in task["error"]
            assert task["exit_code"] is None
            assert (one.assigned.qsize(), two.assigned.qsize()) == (1, 1)

    with_master(tmp_path, scenario)


def test_a_malformed_task_is_not_tried_elsewhere(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as one, ToyWorker(addresses.grpc) as two:
            one.answer = two.answer = refused(pb.REFUSAL_INVALID, "inputs[0].path")
            await http.submit(task_id="t")
            task = await http.until("t", "failed")
            assert task["error"] == "INVALID: inputs[0].path"
            assert one.assigned.qsize() + two.assigned.qsize() == 1

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ the rest


def test_the_workers_own_calls_are_unimplemented(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            for call, request in (
                (worker.tasks.AssignTask, pb.TaskAssignmentRequest()),
                (worker.tasks.CancelTask, pb.TaskCancelRequest()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(request, timeout=WAIT_S)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    with_master(tmp_path, scenario)


def test_health_and_reflection_are_on(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "hivemind.v1.NodeService", "hivemind.v1.TaskService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = (await stream.read()).list_services_response.service
            assert {"hivemind.v1.NodeService", "hivemind.v1.TaskService"} <= {
                s.name for s in listed
            }
            await stream.done_writing()
            assert await stream.read() is EOF

    with_master(tmp_path, scenario)


def test_with_plain_text_there_are_no_tokens_but_a_node_can_be_revoked(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        response = await http.call("POST", "/api/v1/tokens", json={})
        assert response.status_code == 409
        assert "plain text" in response.json()["error"]
        async with ToyWorker(addresses.grpc) as worker:
            path = f"/api/v1/nodes/{worker.node_id}"
            assert (await http.call("POST", f"{path}/revoke", json={})).status_code == 204
            for call in (worker.beat, worker.register):
                with pytest.raises(grpc.aio.AioRpcError, match="was revoked"):
                    await call()
            assert (await http.call("POST", f"{path}/approve", json={})).status_code == 204
            await worker.beat()

    with_master(tmp_path, scenario)
