"""The worker's side of the contract, over real gRPC, with every step in the test's hand."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]

from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

GIB = 2**30
OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),
]
Key = tuple[str, int]
Answer = Callable[[pb.TaskAssignmentRequest], pb.TaskAssignmentResponse]


def inventory(**more: Any) -> pb.NodeInventory:
    fields: dict[str, Any] = {
        "cpu_count": 8,
        "memory_bytes": 16 * GIB,
        "disk_bytes": 100 * GIB,
        "architecture": "x86_64",
    }
    return pb.NodeInventory(**fields | more)


@dataclass
class Play:
    """What a task does."""

    records: Sequence[tuple[int, bytes]] = ()
    output: bytes = b""
    state: int = pb.TASK_STATE_SUCCEEDED
    exit_code: int = 0
    error: str = ""
    cause: int = pb.FAILURE_CAUSE_UNSPECIFIED
    reward: int = 8  # or more, by its use of a GPU


def accepted(request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
    return pb.TaskAssignmentResponse(
        task_id=request.task_id, attempt=request.attempt, accepted=True
    )


def refused(refusal: int, reason: str = "no", retry_after_s: int = 0) -> Answer:
    def answer(request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        response = pb.TaskAssignmentResponse(
            task_id=request.task_id,
            attempt=request.attempt,
            refusal=pb.Refusal.Name(refusal),
            reason=reason,
        )
        response.retry_after.seconds = retry_after_s
        return response

    return answer


def chunk(
    request: pb.TaskAssignmentRequest, records: Sequence[pb.LogRecord] = (), *, end: bool = False
) -> pb.TaskLogChunk:
    return pb.TaskLogChunk(
        task_id=request.task_id, attempt=request.attempt, records=records, end=end
    )


class ToyWorker:
    """A node. It answers by itself on its channel; it beats and delivers when it is told to."""

    def __init__(self, address: str, *, node_id: str = "", endpoint: str = "", **more: Any) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self.nodes = pb_grpc.NodeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.tasks = pb_grpc.TaskServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.node_id, self.endpoint = node_id, endpoint
        self.inventory = inventory(**more)
        self.state = pb.NODE_STATE_READY
        self.answer: Answer = accepted
        self.play: Callable[[pb.TaskAssignmentRequest], Play] | None = None
        self.held: dict[Key, pb.TaskAssignmentRequest] = {}
        self.assigned: asyncio.Queue[pb.TaskAssignmentRequest] = asyncio.Queue()
        self.cancelled: asyncio.Queue[pb.TaskCancelRequest] = asyncio.Queue()
        self.hello: pb.HeartbeatResponse | None = None
        self._sequence = 0
        self._running: set[asyncio.Task[None]] = set()
        self._stream: Any = None

    async def __aenter__(self) -> "ToyWorker":
        await self.register()
        await self.open_channel()
        await self.beat()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._stream is not None:
            self._stream.cancel()
        await self._channel.close(None)

    # -------------------------------------------------------------- the node

    async def register(self) -> pb.NodeRegistrationResponse:
        response: pb.NodeRegistrationResponse = await self.nodes.RegisterNode(
            pb.NodeRegistrationRequest(
                node_name="toy",
                node_id=self.node_id,
                protocol_version=1,
                inventory=self.inventory,
                task_endpoint=self.endpoint,
            ),
            timeout=10,
        )
        self.node_id = response.node_id or self.node_id
        return response

    async def beat(self, *, without: Iterable[Key] = ()) -> pb.HeartbeatResponse:
        response: pb.HeartbeatResponse = await self.nodes.Heartbeat(
            self._heartbeat(without), timeout=10
        )
        return response

    def keep_beating(self) -> None:
        """Ten times a second, until the worker closes."""

        async def beats() -> None:
            while True:
                await self.beat()
                await asyncio.sleep(0.1)

        self._spawn(beats())

    async def open_channel(self) -> None:
        self._stream = self.nodes.OpenChannel()
        await self._stream.write(pb.NodeMessage(hello=self._heartbeat()))
        first = await self._stream.read()
        self.hello = first.hello
        self._spawn(self._serve(self._stream))

    async def close_channel(self) -> None:
        await self._stream.done_writing()

    def _heartbeat(self, without: Iterable[Key] = ()) -> pb.HeartbeatRequest:
        self._sequence += 1
        return pb.HeartbeatRequest(
            node_id=self.node_id,
            sequence=self._sequence,
            incarnation="one",
            state=self.state,
            tasks=[
                pb.TaskRef(task_id=task_id, attempt=attempt)
                for task_id, attempt in self.held
                if (task_id, attempt) not in without
            ],
        )

    async def _serve(self, stream: Any) -> None:
        while (message := await stream.read()) is not EOF:
            if message.WhichOneof("body") == "assign":
                await stream.write(pb.NodeMessage(assigned=self.assign(message.assign)))
            elif message.WhichOneof("body") == "cancel":
                await stream.write(pb.NodeMessage(cancelled=self.cancel(message.cancel)))

    def assign(self, request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        answer = self.answer(request)
        if answer.accepted:
            self.held[request.task_id, request.attempt] = request
            if self.play is not None:
                self._spawn(self.deliver(request, self.play(request)))
        self.assigned.put_nowait(request)
        return answer

    def cancel(self, request: pb.TaskCancelRequest) -> pb.TaskCancelResponse:
        self.cancelled.put_nowait(request)
        return pb.TaskCancelResponse(
            task_id=request.task_id,
            attempt=request.attempt,
            known=(request.task_id, request.attempt) in self.held,
            state=pb.TASK_STATE_RUNNING,
        )

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    # -------------------------------------------------------------- a task

    async def report(self, request: pb.TaskAssignmentRequest, state: int) -> bool:
        response = await self.tasks.ReportTaskStatus(
            pb.TaskStatusRequest(
                node_id=self.node_id,
                task_id=request.task_id,
                attempt=request.attempt,
                state=pb.TaskState.Name(state),
            ),
            timeout=10,
        )
        return bool(response.wanted)

    async def fetch(self, request: pb.TaskAssignmentRequest, path: str, offset: int = 0) -> bytes:
        stream = self.tasks.FetchTaskInput(
            pb.TaskInputRequest(
                task_id=request.task_id, attempt=request.attempt, path=path, offset=offset
            ),
            timeout=30,
        )
        return b"".join([part.data async for part in stream])

    async def send_log(self, chunks: Iterable[pb.TaskLogChunk]) -> list[pb.TaskLogAck]:
        """One stream; each chunk waits for the acknowledgement of the one before."""
        stream = self.tasks.StreamTaskLogs(timeout=30)
        acks = []
        for one in chunks:
            await stream.write(one)
            acks.append(await stream.read())
        await stream.done_writing()
        assert await stream.read() is EOF
        return acks

    async def send_output(
        self, request: pb.TaskAssignmentRequest, data: bytes, chunk_bytes: int = 256 * 1024
    ) -> pb.TaskOutputReceipt:
        """Goes on from what the master has."""
        sha256 = hashlib.sha256(data).digest()
        query = pb.TaskOutputQuery(task_id=request.task_id, attempt=request.attempt, sha256=sha256)
        receipt: pb.TaskOutputReceipt = await self.tasks.QueryTaskOutput(query, timeout=10)
        if receipt.complete:
            return receipt

        async def chunks() -> AsyncIterator[pb.TaskOutputChunk]:
            for offset in range(receipt.stored_bytes, len(data), chunk_bytes):
                yield pb.TaskOutputChunk(
                    task_id=request.task_id,
                    attempt=request.attempt,
                    sha256=sha256,
                    total_bytes=len(data),
                    offset=offset,
                    data=data[offset : offset + chunk_bytes],
                )

        uploaded: pb.TaskOutputReceipt = await self.tasks.UploadTaskOutput(chunks(), timeout=30)
        return uploaded

    async def submit(
        self, request: pb.TaskAssignmentRequest, play: Play, log_records: int | None = None
    ) -> bool:
        response = await self.tasks.SubmitTaskResult(
            self.result(request, play, log_records), timeout=10
        )
        return bool(response.acknowledged)

    def result(
        self, request: pb.TaskAssignmentRequest, play: Play, log_records: int | None = None
    ) -> pb.TaskResultRequest:
        output = pb.OutputArchive()
        if play.output:
            output.sha256 = hashlib.sha256(play.output).digest()
            output.size_bytes, output.format = len(play.output), "tar.gz"
        return pb.TaskResultRequest(
            node_id=self.node_id,
            task_id=request.task_id,
            attempt=request.attempt,
            state=pb.TaskState.Name(play.state),
            exit_code=play.exit_code,
            error=play.error,
            cause=pb.FailureCause.Name(play.cause),
            reward=play.reward,
            report=pb.ExecutionReport(gpu_percent_average=(play.reward - 8) * 100),
            output=output,
            log_records=len(play.records) if log_records is None else log_records,
        )

    async def deliver(self, request: pb.TaskAssignmentRequest, play: Play) -> None:
        """Log, output, result, as the contract orders them."""
        for state in (pb.TASK_STATE_PREPARING, pb.TASK_STATE_RUNNING):
            await self.report(request, state)
        records = [
            pb.LogRecord(sequence=n, stream=pb.LogStream.Name(stream), data=data)
            for n, (stream, data) in enumerate(play.records)
        ]
        await self.send_log(
            [
                chunk(request),
                *(chunk(request, [r]) for r in records),
                chunk(request, end=True),
            ]
        )
        if play.output:
            assert (await self.send_output(request, play.output)).complete
        assert await self.submit(request, play)
        self.held.pop((request.task_id, request.attempt), None)
