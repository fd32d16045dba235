"""NodeService on the master's side: who is there, what it holds, and its channel."""

import logging
import time
from collections.abc import AsyncIterator
from typing import NoReturn, TypeAlias

import grpc
from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError

from procs.master import node_records
from procs.master.database import Database
from procs.master.dispatcher import Dispatcher
from procs.master.gate import Gate
from procs.master.grpc_edge import Channel, Workers
from procs.master.registration import Registration
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

log = logging.getLogger("master")

ChannelContext: TypeAlias = grpc.aio.ServicerContext[pb.NodeMessage, pb.MasterMessage]


class NodeServer(pb_grpc.NodeServiceServicer):
    """What nodes call."""

    def __init__(
        self,
        database: Database,
        workers: Workers,
        dispatcher: Dispatcher,
        gate: Gate,
        registration: Registration,
    ) -> None:
        self._database, self._workers = database, workers
        self._dispatcher = dispatcher
        self._gate, self._registration = gate, registration

    async def RegisterNode(
        self,
        request: pb.NodeRegistrationRequest,
        context: grpc.aio.ServicerContext[pb.NodeRegistrationRequest, pb.NodeRegistrationResponse],
    ) -> pb.NodeRegistrationResponse:
        return await self._registration.at_grpc(request, context)

    async def Heartbeat(
        self,
        request: pb.HeartbeatRequest,
        context: grpc.aio.ServicerContext[pb.HeartbeatRequest, pb.HeartbeatResponse],
    ) -> pb.HeartbeatResponse:
        await self._gate.check(context, request.node_id)
        return await self._beat(request, self._workers.has_channel(request.node_id))

    async def ReportNodeStatus(
        self,
        request: pb.NodeStatusRequest,
        context: grpc.aio.ServicerContext[pb.NodeStatusRequest, pb.NodeStatusResponse],
    ) -> pb.NodeStatusResponse:
        await self._gate.check(context, request.node_id)
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
        await self._gate.check(context, first.hello.node_id)
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
