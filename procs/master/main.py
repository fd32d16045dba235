"""The reference master: wires database, files, gRPC and HTTP, and runs until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from procs.master import core, housekeeping
from procs.master.bells import Bells
from procs.master.database import Database, open_database
from procs.master.dispatcher import Dispatcher
from procs.master.files import Files
from procs.master.grpc_edge import SERVER_OPTIONS, Workers
from procs.master.http_server import Api, make_app
from procs.master.node_server import NodeServer
from procs.master.task_server import TaskServer
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

log = logging.getLogger("master")

SERVICES = [s.full_name for s in pb.DESCRIPTOR.services_by_name.values()]
STOP_GRACE_S = 1.0


class AddressError(Exception):
    """An address cannot be listened on."""


@dataclass(frozen=True)
class Settings:
    """Where to listen, where to keep, whom to trust."""

    listen: str
    http: str
    data: Path
    trust_level: int = 0
    lost_after_s: float = core.LOST_AFTER_S


@dataclass(frozen=True)
class Addresses:
    """Where a master that runs can be reached. `loop` ends only by a fault of the master."""

    grpc: str
    http: str
    loop: asyncio.Task[None]


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
    workers, bells = Workers(), Bells()
    dispatcher = Dispatcher(database, files, workers, bells, settings.lost_after_s)
    nodes = NodeServer(database, workers, dispatcher, settings.trust_level)
    tasks = TaskServer(database, files, dispatcher, bells)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    grpc_address = await _start_grpc(server, settings.listen, nodes, tasks)
    api = Api(database, files, workers, dispatcher, bells, grpc_address)
    loop = asyncio.create_task(_run(dispatcher, housekeeping.run(database, files)))
    try:
        async with _http(settings.http, api) as http_address:
            yield Addresses(grpc_address, f"http://{http_address}", loop)
    finally:
        workers.close_channels()
        await server.stop(STOP_GRACE_S)
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
        print(f"hivemind-master ready grpc={addresses.grpc} http={addresses.http}", flush=True)
        told = asyncio.create_task(stop.wait())
        await asyncio.wait({told, addresses.loop}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        log.info("stopping")
        if addresses.loop.done():
            addresses.loop.result()  # raises what ended it: whoever started us starts us again


async def _run(dispatcher: Dispatcher, tidying: Coroutine[None, None, None]) -> None:
    """Both, until one fails."""
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        group.create_task(tidying)


async def _start_grpc(
    server: grpc.aio.Server, listen: str, nodes: NodeServer, tasks: TaskServer
) -> str:
    pb_grpc.add_NodeServiceServicer_to_server(nodes, server)  # type: ignore[no-untyped-call]
    pb_grpc.add_TaskServiceServicer_to_server(tasks, server)  # type: ignore[no-untyped-call]
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as err:
        raise AddressError(f"cannot listen on {listen}") from err
    await server.start()
    for name in ("", *SERVICES):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return f"{listen.rpartition(':')[0]}:{port}"


@contextlib.asynccontextmanager
async def _http(listen: str, api: Api) -> AsyncIterator[str]:
    sock = _bind(listen)
    config = uvicorn.Config(
        make_app(api),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,  # else a follower of a log holds up the end
    )
    server = _Http(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield f"{listen.rpartition(':')[0]}:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
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
