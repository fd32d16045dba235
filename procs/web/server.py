"""HTTP: the routes, the guard before them, and uvicorn without its ten ticks a second.

The same is served at two doors: WEB_LISTEN, and a socket in the home for the command line, which
the file's mode guards.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from procs.web import core
from procs.web.history import wanted
from procs.web.hub import Hub
from shared.history import SearchError

log = logging.getLogger("web")

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none';"
    " form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
RETRY_S = 5.0  # a port in use: the beat goes on meanwhile
MOST_CONNECTIONS = 100
DRAIN_S = 1  # uvicorn waits so long for open streams at the end
SOCKET_MODE = 0o660  # the service's group, and root


class Wish(msgspec.Struct):
    """The body of POST /owner."""

    wish: str


class Guard:
    """Refuses before any route sees the request; its headers stand on every answer."""

    def __init__(self, app: ASGIApp, access: core.Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = core.refusal(scope["method"], scope["path"], Headers(scope=scope), self._access)
        app = self._app if refused is None else _refused(*refused)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)


def _refused(status: int, reason: str) -> Response:
    headers = {"www-authenticate": 'Basic realm="HiveMind Worker"'} if status == 401 else None
    return PlainTextResponse(reason + "\n", status, headers)


def make_app(hub: Hub, access: core.Access) -> ASGIApp:
    """The page and its questions, behind the guard."""

    async def to_page(request: Request) -> Response:
        return RedirectResponse("/monitor.html")

    async def events(request: Request) -> Response:
        return StreamingResponse(hub.events(), media_type="text/event-stream")

    async def health(request: Request) -> Response:
        healthy, body = hub.health()
        return _json(body, 200 if healthy else 503)

    async def history(request: Request) -> Response:
        try:
            return _json(await hub.history(wanted(request.query_params)))
        except SearchError as err:
            return _refused(400, str(err))

    routes = [
        Route("/", to_page),
        Route("/events", events),
        Route("/healthz", health),
        Route("/history", history),
        *_owners_routes(hub),
        *_static_routes(),
    ]
    return Guard(Starlette(routes=routes), access)


def _owners_routes(hub: Hub) -> list[Route]:
    """What the owner may change."""

    async def wish(request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=Wish).wish
            return _json(await hub.change(lambda owner: core.with_wish(owner, wanted)))
        except ValueError as err:
            return _refused(400, str(err))

    async def stop(request: Request) -> Response:
        directory, tasks = request.path_params["directory"], hub.tasks()
        try:
            return _json(
                await hub.change(lambda owner: core.with_stopped(owner, directory, tasks))
            )
        except core.Refused as err:
            return _refused(409, str(err))

    async def rotate(request: Request) -> Response:
        now_unix_s, vpn = time.time(), hub.vpn()
        try:
            return _json(
                await hub.change(lambda owner: core.with_new_tunnel_key(owner, vpn, now_unix_s))
            )
        except core.Refused as err:
            return _refused(409, str(err))

    return [
        Route("/owner", wish, methods=["POST"]),
        Route("/tasks/{directory}/stop", stop, methods=["POST"]),
        Route("/vpn/rotate", rotate, methods=["POST"]),
    ]


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _static_routes() -> list[Route]:
    """The files are few and small: read once, served from memory."""
    return [_static_route(path) for path in sorted(STATIC.iterdir()) if path.suffix in TYPES]


def _static_route(path: Path) -> Route:
    content, media_type = path.read_bytes(), TYPES[path.suffix]

    async def send_file(request: Request) -> Response:
        return Response(content, media_type=media_type)

    folder = "/" if path.suffix == ".html" else "/static/"
    return Route(folder + path.name, send_file)


class Server(uvicorn.Server):
    """uvicorn, stopped by an event: no signal handlers, no ten ticks a second."""

    def __init__(self, config: uvicorn.Config, stop: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = stop

    async def main_loop(self) -> None:
        await self._stop.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


Listen = Callable[[], Awaitable[socket.socket]]


async def serve_http(app: ASGIApp, name: str, listen: Listen, stop: asyncio.Event) -> None:
    """Until `stop`; what can't be listened on, as a port in use, is tried again."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    while not stop.is_set():
        try:
            listener = await listen()
        except OSError as err:
            log.error("can't serve the page on %s: %s; trying again", name, err)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), RETRY_S)
            continue
        log.info("serving %s", name)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=DRAIN_S,
        )
        await Server(config, stop).serve([listener])


async def listen_at_address(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family)


async def listen_at_path(path: Path) -> socket.socket:
    """In place of what an earlier life left there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        listener.bind(str(aside))
        aside.chmod(SOCKET_MODE)
        listener.listen()
        aside.rename(path)
    except OSError:
        listener.close()
        raise
    return listener
