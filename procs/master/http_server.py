"""Discovery for workers, and the JSON API for clients; no browsers.

With TLS a client shows the admin token; with plain text it is on this machine, and shows nothing.

An error is {"error": "one clear sentence"}. A log is followed as lines of JSON: records, the
task as it changes, an empty line where nothing happens, and the ended task last.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from procs.master import (
    bells,
    core,
    joining,
    log_records,
    node_records,
    submission,
    task_records,
    views,
)
from procs.master.admin_api import AdminApi
from procs.master.bells import Bells
from procs.master.core import AttemptPhase
from procs.master.database import Database
from procs.master.dispatcher import Dispatcher
from procs.master.files import DigestMismatch, Files
from procs.master.grpc_edge import Workers
from procs.master.identity import Identity
from procs.master.submission import SubmissionError
from procs.master.task_records import Key
from procs.master.vpn import Vpn
from shared.master_http import DISCOVERY
from shared.pb import hivemind_pb2 as pb

VPN_PUBLIC_KEY = "/api/v1/vpn/public-key"
PUBLIC = frozenset({DISCOVERY, VPN_PUBLIC_KEY})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
QUIET_S = 2.0  # a follower hears at least an empty line this often
BODY_BYTES = 32 * 2**20  # of a submission: what is over it cannot be a task of 12 MiB
DESIRED = {
    "ready": pb.NODE_STATE_READY,
    "draining": pb.NODE_STATE_DRAINING,
    "paused": pb.NODE_STATE_PAUSED,
}


@dataclass
class Api:
    """The endpoints, and what they need."""

    database: Database
    files: Files
    workers: Workers
    dispatcher: Dispatcher
    bells: Bells
    identity: Identity | None
    addresses: dict[str, str]  # grpc and, with TLS, join, as workers reach them
    vpn: Vpn | None = None

    async def discovery(self, _: Request) -> Response:
        document: dict[str, Any] = dict(self.addresses)
        if self.identity is not None:
            document["certificate_authority"] = self.identity.bundle
        if self.vpn is not None:
            document["wireguard"] = self.vpn.document(document["grpc"])
        return JSONResponse(document)

    async def vpn_public_key(self, _: Request) -> Response:
        if self.vpn is None:
            return _error(404, "this master has no VPN")
        return PlainTextResponse(f"{self.vpn.public_key}\n")

    # -------------------------------------------------------------- inputs

    async def input_known(self, request: Request) -> Response:
        known = await asyncio.to_thread(self.files.has_input, _digest(request))
        return Response(status_code=200 if known else 404)

    async def put_input(self, request: Request) -> Response:
        upload = await asyncio.to_thread(self.files.open_upload, _digest(request))
        try:
            async for data in request.stream():
                await asyncio.to_thread(upload.write, data)
            await asyncio.to_thread(upload.keep)
        except DigestMismatch as err:
            return _error(400, str(err))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            await asyncio.to_thread(upload.close)
        return Response(status_code=201)

    # -------------------------------------------------------------- tasks

    async def submit(self, request: Request) -> Response:
        body = await _body(request)
        try:
            asked = submission.parse(body)
            spec = submission.assignment(asked)
            await asyncio.to_thread(self._add_inputs, asked, spec)
            submission.check_size(spec, asked.secrets)
        except SubmissionError as err:
            return _error(400, str(err))
        return await asyncio.shield(self.dispatcher.in_background(self._keep(asked, spec)))

    async def tasks(self, _: Request) -> Response:
        rows, nodes = await self.database.run(_all_tasks)
        return JSONResponse({"tasks": [views.task(row, nodes) for row in rows]})

    async def task(self, request: Request) -> Response:
        row, nodes = await self._one(request)
        spec = await self.database.run(task_records.spec, row["task_id"])
        return JSONResponse(views.task(row, nodes) | {"spec": views.spec(spec)})

    async def cancel(self, request: Request) -> Response:
        task_id = request.path_params["task_id"]
        reason = "cancelled by the client"
        known = await self.database.run(task_records.cancel, task_id, reason, time.time())
        if not known:
            raise HTTPException(404, f"there is no task {task_id}")
        await self.dispatcher.ended(task_id)
        return await self.task(request)

    async def output(self, request: Request) -> Response:
        row, _ = await self._one(request)
        if not row["state"] or row["result"] is None:
            return _error(409, f"task {row['task_id']} has no result")
        sha256 = pb.TaskResultRequest.FromString(row["result"]).output.sha256
        if not sha256:
            return _error(404, f"task {row['task_id']} left no output")
        output = self.files.output(Key(row["task_id"], row["attempt"]), sha256)
        if not output.complete():
            return _error(410, f"the output of task {row['task_id']} is gone")
        return FileResponse(
            output.path, media_type="application/gzip", headers={"X-SHA256": sha256.hex()}
        )

    async def log(self, request: Request) -> Response:
        row, _ = await self._one(request)
        follow = request.query_params.get("follow") == "1"
        at = Key(row["task_id"], _number(request, "attempt", 1 if follow else row["attempt"]))
        lines = self._log_lines(at, _number(request, "sequence", 0), follow)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    # -------------------------------------------------------------- nodes

    async def nodes(self, _: Request) -> Response:
        found = await self.database.run(_all_nodes)
        view = [
            views.node(row, report, given, self.workers.has_channel(row["node_id"]))
            for row, report, given in found
        ]
        seats = await self.vpn.shown() if self.vpn is not None else {}
        for one in view:
            one["vpn"] = seats.get(one["node_id"])
        waiting = [views.applicant(row) for row in await self.database.run(joining.applicants)]
        return JSONResponse({"nodes": view + waiting})

    async def desire(self, request: Request) -> Response:
        """Ask a node to be ready, draining or paused: it hears with its next heartbeat."""
        node_id = request.path_params["node_id"]
        state = DESIRED.get((await _body(request)).decode(errors="replace").strip())
        if state is None:
            return _error(400, "the body must be ready, draining or paused")
        if not await self.database.run(node_records.set_desired_state, node_id, state):
            return _error(404, f"there is no node {node_id}")
        return Response(status_code=204)

    # -------------------------------------------------------------- parts

    def _add_inputs(self, asked: submission.Submission, spec: pb.TaskAssignmentRequest) -> None:
        for one in asked.inputs:
            if self.files.input_size(one.sha256) != one.size_bytes:
                text = f"input {one.path!r} was not uploaded, or its size_bytes is wrong"
                raise SubmissionError(text)
        for index in submission.to_inline(asked.inputs):
            spec.inputs[index].inline = self.files.whole_input(asked.inputs[index].sha256)

    async def _keep(self, asked: submission.Submission, spec: pb.TaskAssignmentRequest) -> Response:
        """Store a task, its secrets first; the same again is the same task."""
        known = await self.database.run(task_records.task, asked.task_id)
        if known is None:
            await asyncio.to_thread(self.files.keep_secrets, asked.task_id, asked.secrets)
            await self.database.run(
                task_records.submit, spec, submission.demand(asked), time.time()
            )
            self.dispatcher.wake()
        elif await self.database.run(task_records.spec, asked.task_id) != spec:
            return _error(409, f"there is another task {asked.task_id}")
        return JSONResponse({"task_id": asked.task_id}, 201 if known is None else 200)

    async def _one(self, request: Request) -> tuple[task_records.Row, list[core.Node]]:
        task_id = request.path_params["task_id"]
        row, nodes, _ = await self.database.run(_one_task, task_id)
        if row is None:
            raise HTTPException(404, f"there is no task {task_id}")
        return row, nodes

    async def _log_lines(self, at: Key, sequence: int, follow: bool) -> AsyncIterator[bytes]:
        """Every record from `at` on, attempt after attempt, then the task as it ended."""
        shown: dict[str, Any] = {}
        while True:
            bell = self.bells.listen(at.task_id)
            row, nodes, records = await self.database.run(_task_and_log, at, sequence)
            assert row is not None  # tasks are never deleted
            if records:
                yield b"".join(_line(views.log_record(at.attempt, r)) for r in records)
                sequence = records[-1].sequence + 1
                continue
            if follow and at.attempt < row["attempt"]:
                at, sequence = Key(at.task_id, at.attempt + 1), 0
                continue
            view = views.task(row, nodes)
            if view["ended"] or not follow:
                yield _line({"task": view})
                return
            if _but_counts(view) != shown:
                shown = _but_counts(view)
                yield _line({"task": view})
            if not await bells.wait(bell, QUIET_S):
                yield b"\n"


def make_app(api: Api, admin: AdminApi) -> ASGIApp:
    """The application, behind the check of who calls."""
    routes = [
        Route(DISCOVERY, api.discovery),
        Route(VPN_PUBLIC_KEY, api.vpn_public_key),
        Route("/api/v1/inputs/{sha256}", api.input_known, methods=["HEAD"]),
        Route("/api/v1/inputs/{sha256}", api.put_input, methods=["PUT"]),
        Route("/api/v1/tasks", api.tasks),
        Route("/api/v1/tasks", api.submit, methods=["POST"]),
        Route("/api/v1/tasks/{task_id}", api.task),
        Route("/api/v1/tasks/{task_id}/cancel", api.cancel, methods=["POST"]),
        Route("/api/v1/tasks/{task_id}/log", api.log),
        Route("/api/v1/tasks/{task_id}/output", api.output),
        Route("/api/v1/nodes", api.nodes),
        Route("/api/v1/nodes/{node_id}/desired-state", api.desire, methods=["PUT"]),
        Route("/api/v1/nodes/{node_id}/approve", admin.approve, methods=["POST"]),
        Route("/api/v1/nodes/{node_id}/revoke", admin.revoke, methods=["POST"]),
        Route("/api/v1/tokens", admin.create_token, methods=["POST"]),
        Route("/api/v1/authority", admin.authority),
        Route("/api/v1/authority/rotate", admin.rotate, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    return _Doorkeeper(app, api.identity)


class _Doorkeeper:
    """Turns away browsers, whom a page of any site can send here, a rebound name too; and, with
    TLS, who has not the admin token."""

    def __init__(self, app: ASGIApp, identity: Identity | None) -> None:
        self._app, self._identity = app, identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused = self._refusal(Request(scope))
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if "origin" in request.headers or "sec-fetch-site" in request.headers:
            return _error(403, "this API is not for browsers")
        if self._identity is not None:
            open_to_all = request.url.path in PUBLIC
            if open_to_all or _shows(request, self._identity.admin_token):
                return None
            return _error(401, "show this master's admin token: hivemind --help says how")
        host = request.headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name not in LOOPBACK_NAMES:
            return _error(403, f"the Host header names {host!r}: only a loopback name is served")
        return None


def _shows(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode())


async def _http_error(_: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)  # by its registration
    return _error(err.status_code, err.detail)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def _digest(request: Request) -> str:
    sha256 = str(request.path_params["sha256"])
    if not submission.SHA256.fullmatch(sha256):
        raise HTTPException(400, "an input is named by its SHA-256 in 64 lower-case hex digits")
    return sha256


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HTTPException(400, f"{name} is {text!r}: it must be a number")
    return int(text)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > BODY_BYTES:
            raise HTTPException(413, f"the body has over {BODY_BYTES} bytes")
    return bytes(body)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _but_counts(view: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in view.items() if key != "log_records"}


class Seen(NamedTuple):
    """A task, what it may wait for, and the next records of its log."""

    row: task_records.Row | None
    nodes: list[core.Node]
    records: Sequence[pb.LogRecord] = ()


def _all_tasks(connection: sa.Connection) -> tuple[list[task_records.Row], list[core.Node]]:
    return task_records.newest(connection), _nodes(connection)


def _one_task(connection: sa.Connection, task_id: str) -> Seen:
    row = task_records.one_newest(connection, task_id)
    waits = row is not None and row["phase"] == AttemptPhase.WAITING
    return Seen(row, _nodes(connection) if waits else [])


def _task_and_log(connection: sa.Connection, at: Key, sequence: int) -> Seen:
    row, nodes, _ = _one_task(connection, at.task_id)
    return Seen(row, nodes, log_records.read(connection, at, sequence))


def _nodes(connection: sa.Connection) -> list[core.Node]:
    return node_records.for_placement(node_records.nodes(connection), task_records.live(connection))


def _all_nodes(connection: sa.Connection) -> list[tuple[node_records.Row, bytes | None, int]]:
    given = task_records.given(task_records.live(connection))
    return [
        (
            row,
            node_records.last_report(connection, row["node_id"]),
            len(given.get(row["node_id"], ())),
        )
        for row in node_records.nodes(connection)
    ]
