"""The reference master: wires database, files, gRPC and HTTP, and runs until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from procs.master import core, housekeeping, joining
from procs.master.admin_api import AdminApi
from procs.master.bells import Bells
from procs.master.database import Database, open_database
from procs.master.dispatcher import Dispatcher
from procs.master.files import Files
from procs.master.gate import Gate
from procs.master.grpc_edge import JOIN_OPTIONS, SERVER_OPTIONS, Workers, is_wildcard
from procs.master.http_server import Api, make_app
from procs.master.identity import Identity
from procs.master.joining import WithoutToken
from procs.master.node_server import NodeServer
from procs.master.registration import Registration, join_handler
from procs.master.task_server import TaskServer
from procs.master.vpn import Vpn, VpnSettings
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

log = logging.getLogger("master")

Loop = Callable[[], Coroutine[None, None, None]]

SERVICES = [s.full_name for s in pb.DESCRIPTOR.services_by_name.values()]
STOP_GRACE_S = 1.0
REFRESH_EVERY_S = 3600.0  # a certificate lives for weeks


class AddressError(Exception):
    """An address cannot be listened on."""


@dataclass(frozen=True)
class Settings:
    """Where to listen, where to keep, whom to trust. `host`: what workers are told instead of the
    host in `listen` and `join`; `join` is used with TLS alone."""

    listen: str
    http: str
    data: Path
    trust_level: int = 0
    lost_after_s: float = core.LOST_AFTER_S
    tls: bool = False
    join: str = "127.0.0.1:0"
    host: str = ""
    without_token: WithoutToken = WithoutToken.APPROVE
    clock: Callable[[], float] = time.time
    vpn: VpnSettings | None = None  # with TLS alone


@dataclass(frozen=True)
class Addresses:
    """Where a master that runs can be reached. `loop` ends only by a fault of the master."""

    grpc: str
    http: str
    loop: asyncio.Task[None]
    join: str = ""
    admin_token_file: Path | None = None


class _Http(uvicorn.Server):
    """uvicorn, with the signals left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Addresses]:
    """A master that serves as long as the body runs."""
    files = Files(settings.data)
    try:
        database = open_database(settings.data / "master.db")
        try:
            async with _serving(settings, database, files) as addresses:
                yield addresses
        finally:
            database.close()
    finally:
        files.close()


@contextlib.asynccontextmanager
async def _serving(
    settings: Settings, database: Database, files: Files
) -> AsyncIterator[Addresses]:
    identity = None
    if settings.tls:
        identity = await asyncio.to_thread(Identity, settings.data, settings.clock)
    gate = Gate(tls=settings.tls, clock=settings.clock)
    gate.revoked = await database.run(joining.revoked)
    workers, bells = Workers(identity), Bells()
    dispatcher = Dispatcher(database, files, workers, bells, settings.lost_after_s)
    vpn = Vpn(settings.vpn, settings.data, database) if settings.vpn else None
    registration = Registration(
        database, dispatcher, gate, identity, settings.trust_level, settings.without_token, vpn
    )
    nodes = NodeServer(database, workers, dispatcher, gate, registration)
    tasks = TaskServer(database, files, dispatcher, bells, gate)
    join = join_handler(registration)
    async with (
        _tunnel(vpn) as address,
        _grpc_servers(settings, identity, nodes, tasks, join, address) as told,
    ):
        admin = AdminApi(database, workers, gate, identity, settings.trust_level, vpn)
        api = Api(database, files, workers, dispatcher, bells, identity, told, vpn)
        loops: list[Loop] = [
            dispatcher.run,
            partial(housekeeping.run, database, files),
            partial(_refresh, identity),
            *([vpn.run] if vpn else []),
        ]
        loop = asyncio.create_task(_run(*loops))
        try:
            async with _http(settings.http, api, admin) as url:
                file = identity.admin_token_file if identity is not None else None
                yield Addresses(told["grpc"], url, loop, told.get("join", ""), file)
        finally:
            workers.close_channels()
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
    await dispatcher.close()
    await workers.close()


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings) as addresses:
        ready = f"hivemind-master ready grpc={addresses.grpc} http={addresses.http}"
        if addresses.join:
            ready += f" join={addresses.join} admin={addresses.admin_token_file}"
        print(ready, flush=True)
        told = asyncio.create_task(stop.wait())
        await asyncio.wait({told, addresses.loop}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        log.info("stopping")
        if addresses.loop.done():
            addresses.loop.result()  # raises what ended it: whoever started us starts us again


async def _run(*loops: Loop) -> None:
    """All of them, until one fails."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop())


async def _refresh(identity: Identity | None) -> None:
    """The master's own certificate is renewed, and a change of its authority ended, in time."""
    while identity is not None:
        await asyncio.sleep(REFRESH_EVERY_S)
        await asyncio.to_thread(identity.refresh)


@contextlib.asynccontextmanager
async def _tunnel(vpn: Vpn | None) -> AsyncIterator[str]:
    """The address on which gRPC is served through the tunnel too."""
    if vpn is None:
        yield ""
        return
    await vpn.start()
    try:
        yield vpn.address
    finally:
        await vpn.close()


@contextlib.asynccontextmanager
async def _grpc_servers(
    settings: Settings,
    identity: Identity | None,
    nodes: NodeServer,
    tasks: TaskServer,
    join: "grpc.GenericRpcHandler[Any, Any]",
    vpn_address: str,
) -> AsyncIterator[dict[str, str]]:
    """What the discovery document says of the addresses."""
    servers = []
    try:
        servers.append(server := grpc.aio.server(options=SERVER_OPTIONS))
        pb_grpc.add_NodeServiceServicer_to_server(nodes, server)  # type: ignore[no-untyped-call]
        pb_grpc.add_TaskServiceServicer_to_server(tasks, server)  # type: ignore[no-untyped-call]
        await _add_checks(server)
        credentials = identity.server_credentials(client_certificate=True) if identity else None
        told = {
            "grpc": await _start(server, settings.listen, settings.host, credentials, vpn_address)
        }
        if identity is not None:
            servers.append(server := grpc.aio.server(options=JOIN_OPTIONS))
            server.add_generic_rpc_handlers((join,))
            credentials = identity.server_credentials(client_certificate=False)
            told["join"] = await _start(server, settings.join, settings.host, credentials)
        yield told
    finally:
        for server in servers:
            await server.stop(STOP_GRACE_S)


async def _add_checks(server: grpc.aio.Server) -> None:
    """The standard services: health, reflection."""
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    for name in ("", *SERVICES):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)


async def _start(
    server: grpc.aio.Server,
    listen: str,
    host: str,
    credentials: grpc.ServerCredentials | None,
    vpn_address: str = "",
) -> str:
    """The address by which workers reach it; at that of the VPN it has the same port."""
    port = _add_port(server, listen, credentials)
    if vpn_address and not is_wildcard(listen):
        _add_port(server, f"{vpn_address}:{port}", credentials)
    await server.start()
    return f"{host or listen.rpartition(':')[0]}:{port}"


def _add_port(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None
) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(listen)
        return server.add_secure_port(listen, credentials)
    except RuntimeError as err:
        raise AddressError(f"cannot listen on {listen}") from err


@contextlib.asynccontextmanager
async def _http(listen: str, api: Api, admin: AdminApi) -> AsyncIterator[str]:
    """The URL."""
    sock = _bind(listen)
    identity = api.identity
    context = await asyncio.to_thread(identity.https_context) if identity else None
    config = uvicorn.Config(
        make_app(api, admin),
        ssl_context_factory=(lambda *_: context) if context else None,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,  # else a follower of a log holds up the end
    )
    server = _Http(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        host, port = listen.rpartition(":")[0], sock.getsockname()[1]
        yield f"{'https' if context else 'http'}://{host}:{port}"
    finally:
        server.should_exit = True
        await serving
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # TLS that its client did not end
        sock.close()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    # With its protocol named: else asyncio leaves Nagle's delay of 40 ms on.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(128)
    except OSError as err:
        sock.close()
        raise AddressError(f"cannot listen on {listen}: {err.strerror}") from err
    return sock
