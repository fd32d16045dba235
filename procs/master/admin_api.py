"""What an administrator asks of the master over HTTP: join tokens, approval, the authority.

Who may ask is judged before, at the door of http_server.py.
"""

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from procs.master import joining, tokens
from procs.master.database import Database
from procs.master.gate import Gate
from procs.master.grpc_edge import Workers
from procs.master.identity import Identity
from procs.master.vpn import Vpn
from shared.join_token import Token, write_token

log = logging.getLogger("master")

DAY_S = 86400
LONGEST_TTL_S = 365 * DAY_S
MOST_USES = 100_000
MOST_LEVEL = 3
MOST_BODY_BYTES = 4096


@dataclass
class AdminApi:
    """The endpoints, and what they need. `identity` is None with plain text."""

    database: Database
    workers: Workers
    gate: Gate
    identity: Identity | None
    trust_level: int
    vpn: Vpn | None = None

    async def create_token(self, request: Request) -> Response:
        identity, asked = self._identity(), await _asked(request)
        ttl_s = _number(asked, "ttl_s", DAY_S, 1, LONGEST_TTL_S)
        uses = _number(asked, "uses", 1, 1, MOST_USES)
        level = _number(asked, "trust_level", self.trust_level, 0, MOST_LEVEL)
        secret, now_unix_s = tokens.new_secret(), time.time()
        await self.database.run(tokens.create, secret, ttl_s, uses, level, now_unix_s)
        log.info("a join token was made: %d uses, %d s, trust level %d", uses, ttl_s, level)
        token = write_token(Token(identity.digest, secret))
        return JSONResponse({"token": token, "expires_unix_s": now_unix_s + ttl_s}, 201)

    async def approve(self, request: Request) -> Response:
        node_id, asked = request.path_params["node_id"], await _asked(request)
        level = _number(asked, "trust_level", self.trust_level, 0, MOST_LEVEL)
        if not await self.database.run(joining.approve, node_id, level, time.time()):
            raise HTTPException(404, f"there is no node {node_id}")
        self.gate.revoked.discard(node_id)
        await self._sync_vpn()
        log.info("node %s is approved, trust level %d", node_id, level)
        return Response(status_code=204)

    async def revoke(self, request: Request) -> Response:
        node_id = request.path_params["node_id"]
        if not await self.database.run(joining.revoke, node_id):
            raise HTTPException(404, f"there is no node {node_id}")
        self.gate.revoked.add(node_id)
        self.workers.hang_up(node_id)
        await self._sync_vpn()
        log.warning("node %s is revoked", node_id)
        return Response(status_code=204)

    async def authority(self, _: Request) -> Response:
        identity = self._identity()
        return JSONResponse({"digest": identity.digest, "certificates": identity.bundle})

    async def rotate(self, _: Request) -> Response:
        digest = await asyncio.to_thread(self._identity().rotate)
        log.warning("the change to the authority %s has begun", digest)
        return JSONResponse({"digest": digest})

    async def _sync_vpn(self) -> None:
        if self.vpn is not None:
            await self.vpn.sync()

    def _identity(self) -> Identity:
        if self.identity is None:
            text = "this master speaks plain text: nodes join it without a token (see --tls)"
            raise HTTPException(409, text)
        return self.identity


async def _asked(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(413, f"the body has over {MOST_BODY_BYTES} bytes")
    try:
        asked = json.loads(body or b"{}")
    except ValueError as err:
        raise HTTPException(400, "the body is not JSON") from err
    if not isinstance(asked, dict):
        raise HTTPException(400, "the body must be an object")
    return asked


def _number(asked: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = asked.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise HTTPException(400, f"{name} must be a whole number from {least} to {most}")
    return value
