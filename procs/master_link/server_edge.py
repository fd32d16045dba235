"""gRPC served to the master at TASK_LISTEN: AssignTask and CancelTask, health, reflection.

Credentials will slot in at `add_insecure_port`; plain text is for loopback only.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc.aio
from grpc_health.v1 import _async as aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from procs.master_link.master_edge import MAX_MESSAGE_BYTES
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # else a second server would share the port
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
SERVICE = "hivemind.v1.TaskService"


class ListenError(Exception):
    """The address can't be served."""


class Assigns(Protocol):
    """Who takes assignments."""

    async def assign(self, request: pb.TaskAssignmentRequest) -> pb.TaskAssignmentResponse:
        """Never raises for what the request says."""

    async def cancel(self, request: pb.TaskCancelRequest) -> pb.TaskCancelResponse:
        """The same answer each time."""


class TaskService(pb_grpc.TaskServiceServicer):
    """The master's two calls; the others are the master's to serve: UNIMPLEMENTED."""

    def __init__(self, desk: Assigns) -> None:
        self._desk = desk

    async def AssignTask(
        self,
        request: pb.TaskAssignmentRequest,
        context: "grpc.aio.ServicerContext[pb.TaskAssignmentRequest, pb.TaskAssignmentResponse]",
    ) -> pb.TaskAssignmentResponse:
        return await self._desk.assign(request)

    async def CancelTask(
        self,
        request: pb.TaskCancelRequest,
        context: "grpc.aio.ServicerContext[pb.TaskCancelRequest, pb.TaskCancelResponse]",
    ) -> pb.TaskCancelResponse:
        return await self._desk.cancel(request)


async def serve(desk: Assigns, address: str) -> tuple[int, Callable[[], Awaitable[None]]]:
    """The bound port, and how to stop."""
    server = grpc.aio.server(options=OPTIONS)
    add: Any = pb_grpc.add_TaskServiceServicer_to_server  # generated code is untyped
    add(TaskService(desk), server)
    checks = aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in ("", SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as err:
        raise ListenError(f"TASK_LISTEN={address} can't be bound: {err}") from err
    await server.start()

    async def stop() -> None:
        await server.stop(grace=1.0)

    return port, stop
