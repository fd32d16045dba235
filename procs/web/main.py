"""The web process: the page on WEB_LISTEN, and the owner's wishes; run/web.sock is for the
command line.

Reads link.state, task.state, process.state, host.load, gpu.load, vpn.state.
Publishes: owner.want.
"""

import asyncio
import contextlib
import signal
import time
from functools import partial

from procs.web import core
from procs.web.hub import Hub
from procs.web.server import listen_at_address, listen_at_path, make_app, serve_http
from shared import service
from shared.bus import LoopWatch
from shared.owner_socket import owner_socket

READS = ("link.state", "task.state", "process.state", "host.load", "gpu.load", "vpn.state")


def main() -> int:
    return service.begin("web", frozenset(), READS, serve)


def serve(context: service.Context) -> None:
    asyncio.run(_until_signal(context))


async def _until_signal(context: service.Context) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not context.stop.is_set():  # a signal that came before
        await run(context, stop)


async def run(context: service.Context, stop: asyncio.Event) -> None:
    """Until `stop`. The page may be away (a port in use): the beat goes on."""
    loop = asyncio.get_running_loop()
    hub = Hub(context)
    watch = LoopWatch(context.bus, loop, hub.hear)
    workers = [
        asyncio.create_task(_serve_page(hub, context, stop)),
        asyncio.create_task(_serve_owner(hub, context, stop)),
        asyncio.create_task(hub.follow()),
    ]
    try:
        await _beat(hub, watch, stop, workers)
    finally:
        stop.set()
        watch.close()
        hub.close()
        await _end(workers)


async def _serve_page(hub: Hub, context: service.Context, stop: asyncio.Event) -> None:
    host, port = context.settings.web_host, context.settings.web_port
    app = make_app(hub, core.access_for(host, context.settings.web_token))
    listen = partial(listen_at_address, host, port)
    await serve_http(app, f"http://{host}:{port}/monitor.html", listen, stop)


async def _serve_owner(hub: Hub, context: service.Context, stop: asyncio.Event) -> None:
    """Who may open the file may ask all."""
    path = owner_socket(context.home)
    app = make_app(hub, core.Access(None, ""))
    await serve_http(app, str(path), partial(listen_at_path, path), stop)


async def _beat(
    hub: Hub, watch: LoopWatch, stop: asyncio.Event, workers: list[asyncio.Task[None]]
) -> None:
    """On whole seconds of the monotonic clock; a worker that failed ends the process."""
    while not stop.is_set():
        for worker in workers:
            if worker.done():
                worker.result()
        hub.beat()
        watch.beat(rests=hub.pages == 0)
        await hub.prune()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), service.next_beat_in_s(time.monotonic()))


async def _end(workers: list[asyncio.Task[None]]) -> None:
    *serving, following = workers
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    for server in serving:
        await server
