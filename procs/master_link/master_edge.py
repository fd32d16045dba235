"""gRPC towards the master: every call that the worker makes. Its errors end here.

Two connections, so that a heartbeat never waits behind an upload. With credentials they are TLS
1.3 and the other side must be named `hivemind-master`; without, plain text, to loopback only.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from procs.master_link.identity import Credentials
from shared.master_http import MASTER_NAME
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

CALL_S = 15.0  # a small call's deadline
STREAM_S = 6 * 3600.0  # a stream's: then it is opened again, where the master says
STALL_S = 300.0  # one chunk of a stream, or the receipt; a slow line with many streams is faster
FIRST_ACK_S = 15.0
LAST_ACK_S = 60.0
CHUNK_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 16 * 2**20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),  # else the second connection is the first
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),  # http_proxy would apply even to loopback
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)

TASK_SERVICE = pb.DESCRIPTOR.services_by_name["TaskService"].full_name
NAMED = ("grpc.ssl_target_name_override", MASTER_NAME)

T = TypeVar("T")
DENIED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


LogCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, pb.TaskLogAck]"
UploadCall: TypeAlias = "grpc.aio.StreamUnaryCall[bytes, pb.TaskOutputReceipt]"
ChannelCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.NodeMessage, pb.MasterMessage]"


class MasterError(Exception):
    """A call did not do what it should; the text is the master's or gRPC's own."""


class MasterAwayError(MasterError):
    """The master can't be reached, or did not answer in time."""


class MasterLateError(MasterAwayError):
    """The master did not answer in time; the connection may be well."""


class DeniedError(MasterError):
    """The master does not take this node, or not for this task."""


class NotThereError(MasterError):
    """The master has not what was asked for."""


class UnsupportedError(MasterError):
    """The master does not offer this call."""


def _translate(err: grpc.aio.AioRpcError) -> MasterError:
    code, text = err.code(), f"{err.code().name}: {err.details()}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return MasterLateError(text)
    if code in AWAY:
        return MasterAwayError(text)
    if code in DENIED:
        return DeniedError(text)
    if code is grpc.StatusCode.NOT_FOUND:
        return NotThereError(text)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnsupportedError(text)
    return MasterError(text)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """gRPC's errors as ours; also those that it raises as a cancellation that nobody asked for."""
    try:
        yield
    except grpc.aio.AioRpcError as err:
        raise _translate(err) from err
    except (asyncio.InvalidStateError, grpc.aio.UsageError) as err:
        raise MasterAwayError(f"the stream has ended: {err}") from err
    except asyncio.CancelledError as err:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise MasterAwayError("the connection was closed") from err


async def _in_time(step: Awaitable[T]) -> T:
    """One step of a stream; a master that hangs in it must not hold it for the stream's hours."""
    try:
        async with asyncio.timeout(STALL_S):
            with _errors():
                return await step
    except TimeoutError as err:
        raise MasterLateError(f"nothing moved for {STALL_S:.0f} s") from err


def _channel(address: str, credentials: Credentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    proof = grpc.ssl_channel_credentials(
        credentials.authority, credentials.key or None, credentials.certificate or None
    )
    return grpc.aio.secure_channel(address, proof, options=(*OPTIONS, NAMED))


async def join(
    address: str, authority: str, request: pb.NodeRegistrationRequest
) -> pb.NodeRegistrationResponse:
    """RegisterNode of a node that has no certificate."""
    return await register_once(
        address, Credentials(authority.encode()) if authority else None, request
    )


async def register_once(
    address: str, credentials: Credentials | None, request: pb.NodeRegistrationRequest
) -> pb.NodeRegistrationResponse:
    """RegisterNode over a connection of its own."""
    channel = _channel(address, credentials)
    stub: Any = pb_grpc.NodeServiceStub
    try:
        with _errors():
            response: pb.NodeRegistrationResponse = await stub(channel).RegisterNode(
                request, timeout=CALL_S
            )
        return response
    finally:
        await channel.close(None)


class Master:
    """One try's connections to the master; closed for good when it fails."""

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self._calls, self._bulk = _channel(address, credentials), _channel(address, credentials)
        node_stub: Any = pb_grpc.NodeServiceStub  # generated code is untyped
        task_stub: Any = pb_grpc.TaskServiceStub
        self._node = node_stub(self._calls)
        self._task, self._transfer = task_stub(self._calls), task_stub(self._bulk)
        bulk: Any = self._bulk  # chunks come encoded, see chunks.py; its stubs want a serializer
        self._upload: Callable[..., UploadCall] = bulk.stream_unary(
            f"/{TASK_SERVICE}/UploadTaskOutput",
            response_deserializer=pb.TaskOutputReceipt.FromString,
        )
        self._logs: Callable[..., LogCall] = bulk.stream_stream(
            f"/{TASK_SERVICE}/StreamTaskLogs", response_deserializer=pb.TaskLogAck.FromString
        )

    async def close(self) -> None:
        for channel in (self._calls, self._bulk):
            await channel.close(None)

    async def _call(self, call: Callable[..., Awaitable[T]], request: object) -> T:
        with _errors():
            return await call(request, timeout=CALL_S)

    # -------------------------------------------------------------- the node

    async def register(self, request: pb.NodeRegistrationRequest) -> pb.NodeRegistrationResponse:
        """As the node that it is."""
        return await self._call(self._node.RegisterNode, request)

    async def heartbeat(
        self, request: pb.HeartbeatRequest, timeout_s: float
    ) -> pb.HeartbeatResponse:
        with _errors():
            response: pb.HeartbeatResponse = await self._node.Heartbeat(request, timeout=timeout_s)
        return response

    async def report(self, body: bytes) -> pb.NodeStatusResponse:
        request = pb.NodeStatusRequest.FromString(body)
        return await self._call(self._node.ReportNodeStatus, request)

    # -------------------------------------------------------------- a task

    async def status(self, request: pb.TaskStatusRequest) -> bool:
        response = await self._call(self._task.ReportTaskStatus, request)
        return bool(response.wanted)

    async def submit(self, message: bytes) -> bool:
        request = pb.TaskResultRequest.FromString(message)
        response = await self._call(self._task.SubmitTaskResult, request)
        return bool(response.acknowledged)

    async def query_output(self, query: pb.TaskOutputQuery) -> pb.TaskOutputReceipt:
        return await self._call(self._transfer.QueryTaskOutput, query)

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator["Upload"]:
        call = self._upload(timeout=STREAM_S)
        try:
            yield Upload(call)
        finally:
            call.cancel()

    async def fetch(self, request: pb.TaskInputRequest) -> AsyncGenerator[pb.TaskInputChunk, None]:
        call = self._transfer.FetchTaskInput(request, timeout=STREAM_S)
        try:
            while True:
                chunk = await _in_time(call.read())
                if isinstance(chunk, pb.TaskInputChunk):
                    yield chunk
                elif chunk is not None:
                    return
        finally:
            call.cancel()

    @contextlib.asynccontextmanager
    async def log_stream(
        self, opening: bytes, on_change: Callable[[], None]
    ) -> AsyncIterator["LogStream"]:
        """A stream of one attempt's log, opened with its empty chunk."""
        stream = LogStream(self._logs(timeout=STREAM_S), on_change)
        try:
            await stream.send(opening)
            yield stream
        finally:
            await stream.close()

    @contextlib.asynccontextmanager
    async def open_channel(self, hello: pb.HeartbeatRequest) -> AsyncIterator["Channel"]:
        channel = Channel(self._node.OpenChannel(timeout=STREAM_S))
        try:
            await channel.send(pb.NodeMessage(hello=hello))
            yield channel
        finally:
            channel.close()


class Upload:
    """An archive on its way; `send` waits while the master is slow."""

    def __init__(self, call: UploadCall) -> None:
        self._call = call

    async def send(self, chunk: bytes) -> None:
        await _in_time(self._call.write(chunk))

    async def receipt(self) -> pb.TaskOutputReceipt:
        await _in_time(self._call.done_writing())
        return await _in_time(self._call)


class LogStream:
    """One attempt's chunks out, its acks in. `on_change` rings when the stream has ended."""

    def __init__(self, call: LogCall, on_change: Callable[[], None]) -> None:
        self._call = call
        self._on_change = on_change
        self._acked = asyncio.get_running_loop().create_future()
        self._next_sequence = 0
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Take every ack as it comes: unread ones would stop the master's writing."""
        try:
            with _errors():
                while isinstance(ack := await self._call.read(), pb.TaskLogAck | None):
                    if ack is not None:
                        self._note(ack.next_sequence)
        finally:
            self._on_change()

    def _note(self, next_sequence: int) -> None:
        self._next_sequence = max(self._next_sequence, next_sequence)
        if not self._acked.done():
            self._acked.set_result(next_sequence)

    async def first_ack(self) -> int:
        """Where the master wants to go on."""
        await asyncio.wait(
            (self._acked, self._reading),
            timeout=FIRST_ACK_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not self._acked.done():
            self.check()
            raise MasterLateError("no ack came for the log")
        return int(self._acked.result())

    def check(self) -> None:
        """Raise what ended the stream, if it has ended."""
        if self._reading.done():
            self._reading.result()
            raise MasterAwayError("the master has ended the log's stream")

    async def send(self, chunk: bytes) -> None:
        await _in_time(self._call.write(chunk))

    async def ended(self) -> int:
        """After the last chunk: the master's next sequence once it has taken all of it."""
        with _errors():
            await self._call.done_writing()
        try:
            async with asyncio.timeout(LAST_ACK_S):
                await asyncio.shield(self._reading)
        except TimeoutError as err:
            raise MasterLateError("the end of the log was not acknowledged") from err
        return self._next_sequence

    async def close(self) -> None:
        self._call.cancel()
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        if not self._reading.cancelled():
            self._reading.exception()  # told already, or of no interest any more


class Channel:
    """OpenChannel: one writer at a time; what can't be read is left out."""

    def __init__(self, call: ChannelCall) -> None:
        self._call = call
        self._writing = asyncio.Lock()

    async def send(self, message: pb.NodeMessage) -> None:
        with _errors():
            async with self._writing:
                await self._call.write(message)

    async def messages(self) -> AsyncIterator[pb.MasterMessage]:
        """Until the master ends the channel; MasterError when it breaks."""
        while True:
            with _errors():
                message = await self._call.read()
            if isinstance(message, pb.MasterMessage):
                yield message
            elif message is not None:
                return

    def close(self) -> None:
        self._call.cancel()
