"""NodeService on the master's side: who is there, what it holds, and its channel."""

import logging
import re
import time
from collections.abc import AsyncIterator
from typing import NoReturn, TypeAlias

import grpc
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import DecodeError

from procs.master import core, node_records
from procs.master.database import Database
from procs.master.dispatcher import Dispatcher
from procs.master.grpc_edge import Channel, Workers
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

log = logging.getLogger("master")

PROTOCOL_VERSION = 1
NODE_ID = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")

ChannelContext: TypeAlias = grpc.aio.ServicerContext[pb.NodeMessage, pb.MasterMessage]


class NodeServer(pb_grpc.NodeServiceServicer):
    """What nodes call."""

    def __init__(
        self, database: Database, workers: Workers, dispatcher: Dispatcher, trust_level: int
    ) -> None:
        self._database, self._workers = database, workers
        self._dispatcher = dispatcher
        self._trust_level = trust_level

    async def RegisterNode(
        self,
        request: pb.NodeRegistrationRequest,
        context: grpc.aio.ServicerContext[pb.NodeRegistrationRequest, pb.NodeRegistrationResponse],
    ) -> pb.NodeRegistrationResponse:
        reason = _objection(request)
        if reason:
            log.warning("node %r is refused: %s", request.node_name, reason)
            return pb.NodeRegistrationResponse(accepted=False, reason=reason)
        row = await self._database.run(
            node_records.register, request, self._trust_level, time.time()
        )
        self._dispatcher.heard(row["node_id"])
        self._dispatcher.wake()
        log.info("node %s (%r) is registered", row["node_id"], request.node_name)
        return pb.NodeRegistrationResponse(
            accepted=True,
            node_id=row["node_id"],
            trust_level=row["trust_level"],
            heartbeat_interval=_duration(core.HEARTBEAT_INTERVAL_S),
            report_interval=_duration(core.REPORT_INTERVAL_S),
        )

    async def Heartbeat(
        self,
        request: pb.HeartbeatRequest,
        context: grpc.aio.ServicerContext[pb.HeartbeatRequest, pb.HeartbeatResponse],
    ) -> pb.HeartbeatResponse:
        return await self._beat(request, self._workers.has_channel(request.node_id))

    async def ReportNodeStatus(
        self,
        request: pb.NodeStatusRequest,
        context: grpc.aio.ServicerContext[pb.NodeStatusRequest, pb.NodeStatusResponse],
    ) -> pb.NodeStatusResponse:
        row = await self._database.run(node_records.report, request)
        if row is None:
            return pb.NodeStatusResponse(accepted=False)
        return pb.NodeStatusResponse(
            accepted=True, trust_level=row["trust_level"], desired_state=row["desired_state"]
        )

    async def OpenChannel(
        self,
        _: AsyncIterator[pb.NodeMessage],
        context: ChannelContext,
    ) -> AsyncIterator[pb.MasterMessage]:
        """Hello both ways, then assignments out and answers in, until a newer one replaces it."""
        first = await _next_message(context)
        if first is None or first.WhichOneof("body") != "hello":
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "hello comes first")
        hello = await self._beat(first.hello, True)
        yield pb.MasterMessage(hello=hello)
        if hello.reregister:
            return
        channel, node_id = Channel(), first.hello.node_id
        self._workers.opened(node_id, channel)
        self._dispatcher.channel_opened(node_id)
        reader = self._dispatcher.in_background(_read(context, channel))
        try:
            while (message := await channel.outgoing.get()) is not None:
                yield message
        finally:
            self._workers.closed(node_id, channel)
            reader.cancel()

    async def _beat(self, request: pb.HeartbeatRequest, channel_open: bool) -> pb.HeartbeatResponse:
        beat = await self._database.run(node_records.heartbeat, request, time.time())
        if beat.known:
            self._dispatcher.heard(request.node_id)
            self._dispatcher.wake()
        received_at = timestamp_pb2.Timestamp()
        received_at.GetCurrentTime()
        return pb.HeartbeatResponse(
            received_at=received_at,
            reregister=not beat.known,
            forget=[pb.TaskRef(task_id=k.task_id, attempt=k.attempt) for k in beat.forget],
            desired_state=beat.desired_state,
            channel_open=channel_open,
        )


async def _read(context: ChannelContext, channel: Channel) -> None:
    """Hand on what the node answers, until its side ends."""
    try:
        while (message := await _next_message(context)) is not None:
            channel.answered(message)
    finally:
        channel.close()


async def _next_message(context: ChannelContext) -> pb.NodeMessage | None:
    """The next message that can be read; None at the end. The request iterator would not do:
    it ends with the first message that cannot."""
    while True:
        try:
            message = await context.read()
        except DecodeError:
            continue
        return message if isinstance(message, pb.NodeMessage) else None


async def _abort(context: ChannelContext, code: grpc.StatusCode, details: str) -> NoReturn:
    await context.abort(code, details)
    raise AssertionError("abort always raises")


def _objection(request: pb.NodeRegistrationRequest) -> str:
    """Why this node cannot join; empty: it can."""
    if request.protocol_version != PROTOCOL_VERSION:
        return f"protocol_version is {request.protocol_version}, this master speaks 1"
    if request.join_token:
        return "this master has given out no join token; join without one"
    if request.node_id and not NODE_ID.fullmatch(request.node_id):
        return "node_id: 1 to 64 of A-Z, a-z, 0-9, _ . - and not only dots"
    return ""


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
