"""A master for master_link's tests: the contract's side of every call, in memory, with switches."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import grpc.aio

from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import TaskKey

Context = Any  # grpc's own type takes the messages' types, which say nothing here
MAX_MESSAGE_BYTES = 16 * 2**20


def key_of(message: Any) -> TaskKey:
    return TaskKey(message.task_id, message.attempt)


class Memory:
    """What a master remembers; it outlives the server."""

    def __init__(self) -> None:
        self.nodes = 0
        self.registrations: list[pb.NodeRegistrationRequest] = []
        self.heartbeats: list[pb.HeartbeatRequest] = []
        self.reports: list[bytes] = []
        self.statuses: dict[TaskKey, list[pb.TaskStatusRequest]] = {}
        self.logs: dict[TaskKey, list[pb.LogRecord]] = {}
        self.ended: set[TaskKey] = set()
        self.opened: dict[TaskKey, int] = {}
        self.outputs: dict[TaskKey, bytearray] = {}
        self.offsets: dict[TaskKey, list[int]] = {}
        self.results: dict[TaskKey, list[bytes]] = {}
        self.inputs: dict[str, bytes] = {}
        self.input_offsets: list[int] = []
        self.hellos = 0

    def log(self, key: TaskKey) -> bytes:
        return b"".join(record.data for record in self.logs.get(key, []))

    def states(self, key: TaskKey) -> list[str]:
        return [
            pb.TaskState.Name(s.state).removeprefix("TASK_STATE_")
            for s in self.statuses.get(key, [])
        ]


class LooseServer:
    """Takes the generated handlers on their way to a server: on OpenChannel bytes can be sent,
    too, that are no message."""

    def __init__(self, server: grpc.aio.Server, open_channel: Any) -> None:
        self._server = server
        self._open_channel = grpc.stream_stream_rpc_method_handler(
            open_channel,
            request_deserializer=pb.NodeMessage.FromString,
            response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        )

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same again comes below."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        handlers = handlers | {"OpenChannel": self._open_channel}
        generic = grpc.method_handlers_generic_handler(service, handlers)
        self._server.add_generic_rpc_handlers((generic,))


class FakeMaster(pb_grpc.NodeServiceServicer, pb_grpc.TaskServiceServicer):
    """Serves both services and the discovery document on loopback."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self.port = self.http_port = 0
        self.url = ""
        self.seen_at = ""  # instead of the port: what discovery says
        self._http: Any = None
        self.heartbeat_s = 0.5
        self.trust_level = 3
        self.desired: pb.NodeState = pb.NODE_STATE_READY
        self.accept_node = True
        self.accept_report = True
        self.hangs = 0  # how many streams of inputs and outputs hang, from now on
        self.nameless = False  # whether nodes are given no node_id
        self.acknowledge: Callable[[TaskKey], bool] = lambda key: True
        self.on_result: Callable[[TaskKey], None] = lambda key: None
        self.on_status: Callable[[pb.TaskStatusRequest], None] = lambda status: None
        self.on_log: Callable[[pb.TaskLogChunk], None] = lambda chunk: None
        self.wanted = True
        self.fail: dict[str, grpc.StatusCode] = {}  # method -> how it fails
        self.heartbeat_answer = pb.HeartbeatResponse()
        self.registration_answer: pb.NodeRegistrationResponse | None = None  # to the next
        self.report_answer: pb.NodeStatusResponse | None = None
        self.extra_input = b""
        self.channel: Context = None
        self._writing = asyncio.Lock()
        self.answers: dict[tuple[str, TaskKey], asyncio.Future[Any]] = {}

    # -------------------------------------------------------------- life

    async def start(self) -> None:
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        )
        self._server = grpc.aio.server(options=options)
        add_node: Any = pb_grpc.add_NodeServiceServicer_to_server
        add_task: Any = pb_grpc.add_TaskServiceServicer_to_server
        add_node(self, LooseServer(self._server, self.OpenChannel))
        add_task(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        if self._http is None:
            self._serve_discovery()

    def _serve_discovery(self) -> None:
        master = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen_at = master.seen_at or f"127.0.0.1:{master.port}"
                document = json.dumps({"grpc": seen_at}).encode()
                self.send_response(200 if self.path == "/.well-known/hivemind" else 404)
                self.send_header("Content-Length", str(len(document)))
                self.end_headers()
                self.wfile.write(document)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._http = ThreadingHTTPServer(("127.0.0.1", self.http_port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        self.http_port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.http_port}"

    async def stop_grpc(self) -> None:
        """The master goes away; `start` brings it back at the same address."""
        await self._server.stop(grace=None)
        self.channel = None

    async def close(self) -> None:
        """All of it goes away; `start` brings it back."""
        await self.stop_grpc()
        if self._http is not None:
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
            self._http = None

    async def _note(self, method: str, context: Context) -> None:
        if method in self.fail:
            await context.abort(self.fail[method], f"{method} is switched off")

    async def until(self, what: Callable[[], Any], limit_s: float = 20.0) -> None:
        """Wait for something that a call, or another part, brings about."""
        async with asyncio.timeout(limit_s):
            while not what():
                await asyncio.sleep(0.01)

    # -------------------------------------------------------------- the node

    async def RegisterNode(
        self, request: pb.NodeRegistrationRequest, context: Context
    ) -> pb.NodeRegistrationResponse:
        await self._note("RegisterNode", context)
        self.memory.registrations.append(request)
        if self.registration_answer is not None:
            answer, self.registration_answer = self.registration_answer, None
            return answer
        if not self.accept_node:
            return pb.NodeRegistrationResponse(accepted=False, reason="waiting for approval")
        if not request.node_id:
            self.memory.nodes += 1
        response = pb.NodeRegistrationResponse(
            accepted=True,
            node_id="" if self.nameless else request.node_id or f"node-{self.memory.nodes}",
            trust_level=self.trust_level,
        )
        response.heartbeat_interval.FromMilliseconds(int(self.heartbeat_s * 1000))
        return response

    async def Heartbeat(
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatResponse:
        await self._note("Heartbeat", context)
        self.memory.heartbeats.append(request)
        answer, self.heartbeat_answer = self.heartbeat_answer, pb.HeartbeatResponse()
        answer.desired_state = answer.desired_state or self.desired
        return answer

    async def ReportNodeStatus(
        self, request: pb.NodeStatusRequest, context: Context
    ) -> pb.NodeStatusResponse:
        self.memory.reports.append(request.SerializeToString(deterministic=True))
        await self._note("ReportNodeStatus", context)
        if self.report_answer is not None:
            answer, self.report_answer = self.report_answer, None
            return answer
        return pb.NodeStatusResponse(accepted=self.accept_report, trust_level=self.trust_level)

    async def OpenChannel(
        self, requests: AsyncIterator[pb.NodeMessage], context: Context
    ) -> None:
        await self._note("OpenChannel", context)
        try:
            await self._serve_channel(requests, context)
        finally:
            if self.channel is context:
                self.channel = None

    async def _serve_channel(
        self, requests: AsyncIterator[pb.NodeMessage], context: Context
    ) -> None:
        async for message in requests:
            match message.WhichOneof("body"):
                case "hello":
                    self.memory.hellos += 1
                    await context.write(pb.MasterMessage(hello=pb.HeartbeatResponse()))
                    self.channel = context
                case "assigned":
                    self._answer("assign", message.assigned)
                case "cancelled":
                    self._answer("cancel", message.cancelled)

    def _answer(self, what: str, message: Any) -> None:
        future = self.answers.pop((what, key_of(message)), None)
        if future is not None and not future.done():
            future.set_result(message)

    async def assign(
        self, request: pb.TaskAssignmentRequest, limit_s: float = 10.0
    ) -> pb.TaskAssignmentResponse:
        """By the channel."""
        message = pb.MasterMessage(assign=request)
        answer: pb.TaskAssignmentResponse = await self._ask("assign", request, message, limit_s)
        return answer

    async def cancel(self, key: TaskKey, reason: str = "") -> pb.TaskCancelResponse:
        request = pb.TaskCancelRequest(task_id=key.task_id, attempt=key.attempt, reason=reason)
        message = pb.MasterMessage(cancel=request)
        answer: pb.TaskCancelResponse = await self._ask("cancel", request, message, 10.0)
        return answer

    async def say(self, message: bytes) -> None:
        """On the channel, whatever it is."""
        await self.until(lambda: self.channel is not None)
        async with self._writing:
            await self.channel.write(message)

    async def _ask(self, what: str, request: Any, message: Any, limit_s: float) -> Any:
        await self.until(lambda: self.channel is not None)
        future = asyncio.get_running_loop().create_future()
        self.answers[what, key_of(request)] = future
        async with self._writing:  # one write at a time on a stream
            await self.channel.write(message)
        async with asyncio.timeout(limit_s):
            return await future

    # -------------------------------------------------------------- tasks

    async def ReportTaskStatus(
        self, request: pb.TaskStatusRequest, context: Context
    ) -> pb.TaskStatusResponse:
        await self._note("ReportTaskStatus", context)
        assert key_of(request) not in self.memory.results, "a status after the result"
        self.on_status(request)
        self.memory.statuses.setdefault(key_of(request), []).append(request)
        return pb.TaskStatusResponse(wanted=self.wanted)

    async def StreamTaskLogs(
        self, requests: AsyncIterator[pb.TaskLogChunk], context: Context
    ) -> AsyncIterator[pb.TaskLogAck]:
        await self._note("StreamTaskLogs", context)
        seen: set[TaskKey] = set()
        async for chunk in requests:
            key = key_of(chunk)
            if key not in seen:
                seen.add(key)
                assert not chunk.records, "the first chunk of a task must be empty"
                self.memory.opened[key] = self.memory.opened.get(key, 0) + 1
            records = self.memory.logs.setdefault(key, [])
            for record in chunk.records:
                assert record.sequence == len(records), "a gap, or sent twice"
                records.append(record)
            if chunk.end:
                self.memory.ended.add(key)
            self.on_log(chunk)
            yield pb.TaskLogAck(
                task_id=key.task_id, attempt=key.attempt, next_sequence=len(records)
            )

    async def FetchTaskInput(
        self, request: pb.TaskInputRequest, context: Context
    ) -> AsyncIterator[pb.TaskInputChunk]:
        await self._note("FetchTaskInput", context)
        self.memory.input_offsets.append(request.offset)
        await self._hang()
        if request.path not in self.memory.inputs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such input")
        content = self.memory.inputs[request.path] + self.extra_input
        for offset in range(request.offset, len(content), 256 * 1024):
            yield pb.TaskInputChunk(offset=offset, data=content[offset : offset + 256 * 1024])

    async def _hang(self) -> None:
        if self.hangs:
            self.hangs -= 1
            await asyncio.Event().wait()

    async def QueryTaskOutput(
        self, request: pb.TaskOutputQuery, context: Context
    ) -> pb.TaskOutputReceipt:
        await self._note("QueryTaskOutput", context)
        stored = bytes(self.memory.outputs.get(key_of(request), b""))
        complete = hashlib.sha256(stored).digest() == request.sha256
        return pb.TaskOutputReceipt(stored_bytes=len(stored), complete=complete)

    async def UploadTaskOutput(
        self, requests: AsyncIterator[pb.TaskOutputChunk], context: Context
    ) -> pb.TaskOutputReceipt:
        await self._hang()
        total, stored = -1, bytearray()
        async for chunk in requests:
            stored = self.memory.outputs.setdefault(key_of(chunk), bytearray())
            self.memory.offsets.setdefault(key_of(chunk), []).append(chunk.offset)
            assert chunk.offset == len(stored), "a gap, or sent twice"
            stored += chunk.data
            total = chunk.total_bytes
            await self._note("UploadTaskOutput", context)
        return pb.TaskOutputReceipt(stored_bytes=len(stored), complete=len(stored) == total)

    async def SubmitTaskResult(
        self, request: pb.TaskResultRequest, context: Context
    ) -> pb.TaskResultResponse:
        key = key_of(request)
        assert key in self.memory.ended, "a result before the log's end"
        raw = request.SerializeToString(deterministic=True)
        self.memory.results.setdefault(key, []).append(raw)
        self.on_result(key)
        await self._note("SubmitTaskResult", context)
        return pb.TaskResultResponse(acknowledged=self.acknowledge(key))
