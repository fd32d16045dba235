"""gRPC as the master uses it: options, addresses, and how a worker is called.

A worker is called at its `task_endpoint`, else through the channel that it opened. Both carry the
same messages; a call that was not answered is Unanswered, whatever the reason.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

import grpc

from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

log = logging.getLogger("master")

MESSAGE_BYTES = 16 * 2**20
CALL_TIMEOUT_S = 20.0
DIAL_TIMEOUT_S = 5.0  # where the channel can be asked too
SILENT_S = 60.0  # before an address that did not answer is dialled again, while there is a channel
MESSAGE_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
SERVER_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # else a second server binds the same port
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.http2.max_ping_strikes", 0),
]
JOIN_BYTES = 2**18  # anyone may send: a request and an inventory
JOIN_OPTIONS = [
    ("grpc.max_receive_message_length", JOIN_BYTES),  # of two alike the first counts
    *SERVER_OPTIONS,
]
DIAL_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),  # a proxy would apply to loopback too
    ("grpc.max_reconnect_backoff_ms", 5_000),  # we pace ourselves
]

T = TypeVar("T")
Asked = pb.TaskAssignmentResponse | pb.TaskCancelResponse


class Unanswered(Exception):
    """The worker did not answer: it may or may not have heard."""


def is_loopback(address: str) -> bool:
    """`host:port` where host is a loopback address or localhost."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(address: str) -> bool:
    """It means every address of this machine, and names none."""
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_unspecified
    except ValueError:
        return False


class Channel:
    """A worker's OpenChannel: what goes out, and who waits for which answer."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[pb.MasterMessage | None] = asyncio.Queue()
        self._waiting: dict[tuple[str, str, int], asyncio.Future[Asked]] = {}
        self._closed = False

    async def assign(self, request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        answer = await self._ask(
            ("assigned", request.task_id, request.attempt), pb.MasterMessage(assign=request)
        )
        assert isinstance(answer, pb.TaskAssignmentResponse)  # by its key
        return answer

    async def cancel(self, request: pb.TaskCancelRequest) -> pb.TaskCancelResponse:
        answer = await self._ask(
            ("cancelled", request.task_id, request.attempt), pb.MasterMessage(cancel=request)
        )
        assert isinstance(answer, pb.TaskCancelResponse)  # by its key
        return answer

    def answered(self, message: pb.NodeMessage) -> None:
        """Hand an answer to who waits for it; one that nobody waits for is dropped."""
        kind = message.WhichOneof("body")
        if kind not in ("assigned", "cancelled"):
            return
        answer: Asked = message.assigned if kind == "assigned" else message.cancelled
        future = self._waiting.get((kind, answer.task_id, answer.attempt))
        if future is not None and not future.done():
            future.set_result(answer)

    def close(self) -> None:
        """End the stream; who waits for an answer is told."""
        if not self._closed:
            self._closed = True
            self.outgoing.put_nowait(None)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unanswered("the channel was closed"))

    async def _ask(self, key: tuple[str, str, int], message: pb.MasterMessage) -> Asked:
        if self._closed:
            raise Unanswered("the channel was closed")
        future: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        self.outgoing.put_nowait(message)
        try:
            return await asyncio.wait_for(future, CALL_TIMEOUT_S)
        except TimeoutError as err:
            raise Unanswered(f"no answer within {CALL_TIMEOUT_S:g} s") from err
        finally:
            if self._waiting.get(key) is future:
                del self._waiting[key]


class Dials(Protocol):
    """Proves who dials, and knows when that has changed."""

    @property
    def version(self) -> int: ...
    def channel_credentials(self) -> grpc.ChannelCredentials: ...


class Workers:
    """How each worker can be called. `identity` None: in plain text, on this machine alone."""

    def __init__(self, identity: Dials | None = None) -> None:
        self._identity = identity
        self._channels: dict[str, Channel] = {}
        self._dialled: dict[tuple[str, str], tuple[int, grpc.aio.Channel]] = {}
        self._silent_until_s: dict[tuple[str, str], float] = {}

    def opened(self, node_id: str, channel: Channel) -> None:
        """The node opened a channel; a newer one replaces the older."""
        older = self._channels.get(node_id)
        self._channels[node_id] = channel
        if older is not None:
            older.close()

    def closed(self, node_id: str, channel: Channel) -> None:
        channel.close()
        if self._channels.get(node_id) is channel:
            del self._channels[node_id]

    def has_channel(self, node_id: str) -> bool:
        return node_id in self._channels

    async def assign(
        self, node_id: str, endpoint: str, request: pb.TaskAssignmentRequest
    ) -> pb.TaskAssignmentResponse:
        """Ask the node to take an attempt."""
        if self._may_dial(node_id, endpoint):
            limit_s = self._limit_s(node_id)
            call = self._stub(node_id, endpoint).AssignTask(request, timeout=limit_s)
            answer: pb.TaskAssignmentResponse | None = await self._answer(node_id, endpoint, call)
            if answer is not None:
                return answer
        return await self._channel(node_id).assign(request)

    async def cancel(
        self, node_id: str, endpoint: str, request: pb.TaskCancelRequest
    ) -> pb.TaskCancelResponse:
        """Ask the node to end an attempt."""
        if self._may_dial(node_id, endpoint):
            limit_s = self._limit_s(node_id)
            call = self._stub(node_id, endpoint).CancelTask(request, timeout=limit_s)
            answer: pb.TaskCancelResponse | None = await self._answer(node_id, endpoint, call)
            if answer is not None:
                return answer
        return await self._channel(node_id).cancel(request)

    def hang_up(self, node_id: str) -> None:
        """End the channel that the node has open, if it has one."""
        channel = self._channels.get(node_id)
        if channel is not None:
            channel.close()

    def close_channels(self) -> None:
        for channel in self._channels.values():
            channel.close()

    async def close(self) -> None:
        self.close_channels()
        for _, dialled in self._dialled.values():
            await dialled.close(0)

    def _channel(self, node_id: str) -> Channel:
        if node_id not in self._channels:
            raise Unanswered("the node has no channel open")
        return self._channels[node_id]

    async def _answer(self, node_id: str, endpoint: str, call: Awaitable[T]) -> T | None:
        """None: ask by the channel. Both ways carry the same call, which has the effect of once."""
        try:
            return await call
        except grpc.aio.AioRpcError as err:
            if node_id not in self._channels:
                raise Unanswered(f"{err.code().name}: {err.details()}") from err
        log.info("node %s does not answer at its address, asking by its channel", node_id)
        self._silent_until_s[node_id, endpoint] = time.monotonic() + SILENT_S
        return None

    def _may_dial(self, node_id: str, endpoint: str) -> bool:
        """Without TLS only our own machine is dialled; the channel serves any other node, and one
        whose address has just been silent: its tunnel may be down."""
        if not endpoint or (self._identity is None and not is_loopback(endpoint)):
            return False
        is_silent = self._silent_until_s.get((node_id, endpoint), 0.0) > time.monotonic()
        return not (is_silent and node_id in self._channels)

    def _limit_s(self, node_id: str) -> float:
        return DIAL_TIMEOUT_S if node_id in self._channels else CALL_TIMEOUT_S

    def _stub(self, node_id: str, endpoint: str) -> pb_grpc.TaskServiceStub:
        version = self._identity.version if self._identity is not None else 0
        known = self._dialled.get((node_id, endpoint))
        if known is None or known[0] != version:
            known = (version, self._dial(node_id, endpoint))
            self._dialled[node_id, endpoint] = known
        return pb_grpc.TaskServiceStub(known[1])  # type: ignore[no-untyped-call]

    def _dial(self, node_id: str, endpoint: str) -> grpc.aio.Channel:
        """With TLS whoever answers must have the node's certificate."""
        if self._identity is None:
            return grpc.aio.insecure_channel(endpoint, options=DIAL_OPTIONS)
        options = [*DIAL_OPTIONS, ("grpc.ssl_target_name_override", node_id)]
        credentials = self._identity.channel_credentials()
        return grpc.aio.secure_channel(endpoint, credentials, options=options)
