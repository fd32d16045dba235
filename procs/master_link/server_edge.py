"""gRPC served to the master at TASK_LISTEN: AssignTask and CancelTask, health, reflection.

With TLS only `hivemind-master` may call, whichever the service; plain text is for loopback only.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import _async as aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from procs.master_link.identity import Credentials, IdentityError
from procs.master_link.master_edge import MAX_MESSAGE_BYTES
from shared.master_http import MASTER_NAME
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # else a second server would share the port
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),  # the master's are 30 s apart
    ("grpc.keepalive_time_ms", 30_000),  # else a master that vanished stays for two hours
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
SERVICE = "hivemind.v1.TaskService"
TLS = "TLSv1.3"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


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


class MasterOnly(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses every call whose certificate is not the master's own."""

    def __init__(self, on_refused: Callable[[str], None]) -> None:
        self._on_refused = on_refused

    async def intercept_service(self, continuation: Any, details: Any) -> Any:  # noqa: ANN401
        handler = await continuation(details)
        if handler is None:
            return None
        kind = next(k for k in KINDS if getattr(handler, k) is not None)
        return handler._replace(**{kind: self._guarded(getattr(handler, kind))})

    def _guarded(self, inner: Any) -> Any:  # noqa: ANN401
        async def call(request: object, context: Context) -> object:
            await self._check(context)
            return await inner(request, context)

        async def stream(request: object, context: Context) -> AsyncIterator[object]:
            await self._check(context)
            async for message in inner(request, context):
                yield message

        return stream if inspect.isasyncgenfunction(inner) else call

    async def _check(self, context: Context) -> None:
        about = context.auth_context()
        version = b"".join(about.get("ssl_tls_version", ())).decode()
        names = [name.decode() for name in about.get("x509_subject_alternative_name", ())]
        if version == TLS and names == [MASTER_NAME]:
            return
        host = context.peer().rpartition(":")[0]  # without the port: the same again is no news
        self._on_refused(f"{' '.join(names) or 'nobody'} ({host}, {version})")
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED, f"only {MASTER_NAME} may call, over {TLS}"
        )


async def _bind(
    server: grpc.aio.Server, address: str, proof: Callable[[], Credentials] | None
) -> int:
    """`proof` is asked at each new connection: a renewed certificate needs no restart."""
    if proof is None:
        return server.add_insecure_port(address)
    ask = proof

    def changed() -> grpc.ServerCertificateConfiguration | None:
        try:
            return _configuration(ask())
        except IdentityError:
            return None  # the last one stays in force

    first = _configuration(await asyncio.to_thread(ask))
    credentials = grpc.dynamic_ssl_server_credentials(
        first,
        changed,  # type: ignore[arg-type]
        True,
    )
    return server.add_secure_port(address, credentials)


def _configuration(mine: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (mine.key, mine.certificate)
    return grpc.ssl_server_certificate_configuration([pair], mine.authority)


async def serve(
    desk: Assigns,
    address: str,
    proof: Callable[[], Credentials] | None = None,
    on_refused: Callable[[str], None] = lambda who: None,
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """The bound port, and how to stop. `proof` None: plain text."""
    guards = [MasterOnly(on_refused)] if proof is not None else []
    server = grpc.aio.server(options=OPTIONS, interceptors=guards)
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
        port = await _bind(server, address, proof)
    except (RuntimeError, IdentityError) as err:
        raise ListenError(f"TASK_LISTEN={address} can't be bound: {err}") from err
    await server.start()

    async def stop() -> None:
        await server.stop(grace=1.0)

    return port, stop
