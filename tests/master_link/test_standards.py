"""What any gRPC client and server may expect of ours: reflection, health, deadlines, keepalive."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from procs.master import grpc_edge
from procs.master_link import master_edge, server_edge
from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import TaskKey
from tests.fakes import foreign_client
from tests.fakes.link_master import FakeMaster
from tests.fakes.running_master import with_master
from tests.master_link.rig import rig, task_input

KEY = TaskKey("t", 1)
LONGEST_S = 6.1 * 3600.0  # a deadline is rounded up on the wire
WORKERS_CALLS = {
    "RegisterNode", "Heartbeat", "ReportNodeStatus", "OpenChannel", "ReportTaskStatus",
    "FetchTaskInput", "StreamTaskLogs", "QueryTaskOutput", "UploadTaskOutput", "SubmitTaskResult",
}  # fmt: skip


async def foreign(address: str, name: str, **body: Any) -> dict[str, Any]:
    """As grpcurl would: `python -I` sees nothing of this project."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", foreign_client.__file__, address, name, json.dumps(body)),
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_a_task_is_assigned_with_nothing_but_what_the_worker_says_of_itself() -> None:
    async def scenario() -> None:
        async with rig(TASK_LISTEN="127.0.0.1:0") as r:
            await r.until(lambda: r.master.memory.registrations[-1].task_endpoint)
            address = r.master.memory.registrations[-1].task_endpoint
            service = "hivemind.v1.TaskService"
            answer = await foreign(
                address, f"{service}/AssignTask", taskId="t", attempt=1, timeout="60s"
            )
            assert answer == {"taskId": "t", "attempt": 1, "accepted": True}
            await r.until(lambda: KEY in r.executor.held)
            answer = await foreign(address, f"{service}/AssignTask", taskId="..", attempt=1)
            assert answer["refusal"] == "REFUSAL_INVALID"
            answer = await foreign(address, f"{service}/CancelTask", taskId="t", attempt=1)
            assert answer["known"]
            health = await foreign(address, "grpc.health.v1.Health/Check", service=service)
            assert health == {"status": "SERVING"}

    asyncio.run(scenario())


def test_a_node_can_be_played_with_nothing_but_what_the_master_says_of_itself(
    tmp_path: Path,
) -> None:
    async def scenario(addresses: Any, http: Any) -> None:
        service = "hivemind.v1.NodeService"
        joined = await foreign(
            addresses.grpc, f"{service}/RegisterNode", protocolVersion=1, nodeName="curl"
        )
        beat = await foreign(addresses.grpc, f"{service}/Heartbeat", nodeId=joined["nodeId"])
        assert "reregister" not in beat
        (node,) = (await http.get("/api/v1/nodes"))["nodes"]
        assert node["name"] == "curl"
        health = await foreign(addresses.grpc, "grpc.health.v1.Health/Check", service=service)
        assert health == {"status": "SERVING"}

    with_master(tmp_path, scenario)


# ------------------------------------------------------------------ deadlines


def test_each_call_of_the_worker_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    left_s: dict[str, float | None] = {}

    def noted(method: str) -> Any:
        inner = getattr(FakeMaster, method)

        def call(self: FakeMaster, request: Any, context: Any) -> Any:
            left_s[method] = context.time_remaining()
            return inner(self, request, context)

        async def awaited(self: FakeMaster, request: Any, context: Any) -> Any:
            return await call(self, request, context)

        async def streamed(self: FakeMaster, request: Any, context: Any) -> AsyncIterator[Any]:
            async for message in call(self, request, context):
                yield message

        return streamed if method in ("StreamTaskLogs", "FetchTaskInput") else awaited

    for method in WORKERS_CALLS:
        monkeypatch.setattr(FakeMaster, method, noted(method))

    async def scenario() -> None:
        async with rig(RESOURCE_REPORT_INTERVAL="1") as r:
            r.master.memory.inputs["data"] = b"d" * 100
            r.executor.output = b"archive"
            await r.assign(KEY, inputs=[task_input("data", b"d" * 100)])
            r.executor.move(KEY, TaskPhase.PREPARING)
            await r.until(lambda: "FetchTaskInput" in left_s)
            r.executor.run(KEY)
            await r.delivered(KEY)
            await r.until(lambda: "ReportNodeStatus" in left_s)

    asyncio.run(scenario())
    assert left_s.keys() == WORKERS_CALLS
    assert all(left is not None and 0 < left <= LONGEST_S for left in left_s.values()), left_s


class DeafWorker(pb_grpc.TaskServiceServicer):
    """Notes what time each call leaves it."""

    def __init__(self) -> None:
        self.left_s: list[float | None] = []

    async def AssignTask(self, request: Any, context: Any) -> pb.TaskAssignmentResponse:
        self.left_s.append(context.time_remaining())
        return pb.TaskAssignmentResponse(task_id=request.task_id, attempt=request.attempt)

    async def CancelTask(self, request: Any, context: Any) -> pb.TaskCancelResponse:
        self.left_s.append(context.time_remaining())
        return pb.TaskCancelResponse(task_id=request.task_id, attempt=request.attempt)


@asynccontextmanager
async def deaf_worker(worker: DeafWorker) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add: Any = pb_grpc.add_TaskServiceServicer_to_server
    add(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


def test_each_call_of_the_master_has_a_deadline() -> None:
    async def scenario() -> None:
        worker = DeafWorker()
        async with deaf_worker(worker) as address:
            workers = grpc_edge.Workers()
            await workers.assign("n", address, pb.TaskAssignmentRequest(task_id="t", attempt=1))
            await workers.cancel("n", address, pb.TaskCancelRequest(task_id="t", attempt=1))
            await workers.close()
        assert len(worker.left_s) == 2
        assert all(left is not None and 0 < left <= 60 for left in worker.left_s)

    asyncio.run(scenario())


# ------------------------------------------------------------------ keepalive


@pytest.mark.parametrize(
    ("client", "server"),
    [
        pytest.param(master_edge.OPTIONS, grpc_edge.SERVER_OPTIONS, id="worker to master"),
        pytest.param(grpc_edge.DIAL_OPTIONS, server_edge.OPTIONS, id="master to worker"),
    ],
)
def test_no_end_pings_more_often_than_the_other_allows(client: Any, server: Any) -> None:
    """Too many pings end a connection: GOAWAY, ENHANCE_YOUR_CALM."""
    asks, allows = dict(client), dict(server)
    least_ms = allows["grpc.http2.min_ping_interval_without_data_ms"]
    assert asks["grpc.keepalive_time_ms"] > least_ms
    assert asks["grpc.http2.max_pings_without_data"] == 0, "idle ones are looked at, too"
    assert asks["grpc.keepalive_permit_without_calls"] == 1
    assert allows["grpc.keepalive_permit_without_calls"] == 1
    assert asks["grpc.keepalive_timeout_ms"] <= 10_000
    assert asks["grpc.http2.ping_timeout_ms"] <= 10_000
    assert allows["grpc.keepalive_time_ms"] == asks["grpc.keepalive_time_ms"], "it looks, too"
