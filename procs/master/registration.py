"""RegisterNode, at both addresses: who is taken, as which node, with which certificate.

With TLS: at `join` by a token or by approval, at `grpc` by the certificate that the node has. With
plain text, on loopback, whoever comes is taken under the id that it names.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import sqlalchemy as sa
from google.protobuf import duration_pb2

from procs.master import ca, core, joining, node_records
from procs.master.database import Database
from procs.master.dispatcher import Dispatcher
from procs.master.gate import Caller, Gate, line
from procs.master.identity import Identity
from procs.master.joining import NODE_ID, Place, WithoutToken
from procs.master.vpn import Vpn
from procs.master.vpn_records import KeyTaken
from procs.master.wireguard import is_key
from shared.pb import hivemind_pb2 as pb

log = logging.getLogger("master")

PROTOCOL_VERSION = 1
SHOWN_CHARACTERS = 80  # of a name that anybody may send
NODE_SERVICE = pb.DESCRIPTOR.services_by_name["NodeService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
Decision = Callable[[sa.Connection], Place | str]


class Refusal(Exception):
    """The node is told `accepted = false`, and why."""


class Registration:
    """`identity` is None with plain text, `vpn` where there is none."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        gate: Gate,
        identity: Identity | None,
        trust_level: int,
        without_token: WithoutToken,
        vpn: Vpn | None = None,
    ) -> None:
        self._vpn = vpn
        self._database, self._dispatcher = database, dispatcher
        self._gate, self._identity = gate, identity
        self._trust_level, self._without_token = trust_level, without_token

    async def at_grpc(
        self, request: pb.NodeRegistrationRequest, context: Context
    ) -> pb.NodeRegistrationResponse:
        caller = await self._gate.caller(context)
        await self._gate.check(context, request.node_id or (caller.node_id if caller else ""))
        return await self._answer(request, caller, context.peer())

    async def at_join(
        self, request: pb.NodeRegistrationRequest, context: Context
    ) -> pb.NodeRegistrationResponse:
        await self._gate.check_tls(context)
        return await self._answer(request, None)

    async def _answer(
        self, request: pb.NodeRegistrationRequest, caller: Caller | None, peer: str = ""
    ) -> pb.NodeRegistrationResponse:
        try:
            if request.protocol_version != PROTOCOL_VERSION:
                version = request.protocol_version
                raise Refusal(f"protocol_version is {version}, this master speaks 1")
            return await self._take(request, caller, peer)
        except (Refusal, ca.BadRequest) as err:
            reason = line(str(err))
            log.warning("node %r is refused: %s", request.node_name[:SHOWN_CHARACTERS], reason)
            return pb.NodeRegistrationResponse(accepted=False, reason=reason)

    async def _take(
        self, request: pb.NodeRegistrationRequest, caller: Caller | None, peer: str
    ) -> pb.NodeRegistrationResponse:
        identity, asked, key = self._identity, None, request.wireguard_public_key
        if self._vpn is not None and key and not is_key(key):
            raise Refusal("wireguard_public_key: must be 32 bytes in base64")
        if identity is not None and (request.certificate_request or caller is None):
            asked = ca.read_request(request.certificate_request)
        decide = self._decision(request, caller, asked)
        row = await self._database.run(_register, request, decide, time.time())
        if isinstance(row, str):
            raise Refusal(row)
        self._dispatcher.heard(row["node_id"])
        self._dispatcher.wake()
        name = request.node_name[:SHOWN_CHARACTERS]
        log.info("node %s (%r) is registered", row["node_id"], name)
        response = pb.NodeRegistrationResponse(
            accepted=True,
            node_id=row["node_id"],
            trust_level=row["trust_level"],
            heartbeat_interval=_duration(core.HEARTBEAT_INTERVAL_S),
            report_interval=_duration(core.REPORT_INTERVAL_S),
        )
        if identity is not None:
            response.certificate_authority = identity.bundle.encode()
        if identity is not None and asked is not None:
            response.certificate = identity.issue(row["node_id"], asked).encode()
        if self._vpn is not None:
            await self._place_in_vpn(self._vpn, key, peer, response)
        return response

    @staticmethod
    async def _place_in_vpn(
        vpn: Vpn, key: str, peer: str, response: pb.NodeRegistrationResponse
    ) -> None:
        """Once the node is known: a refusal here must not cost it its token."""
        try:
            assigned = await vpn.assign(response.node_id, key, peer)
        except KeyTaken as err:
            raise Refusal(str(err)) from err
        if assigned is not None:
            response.vpn.CopyFrom(assigned)

    def _decision(
        self,
        request: pb.NodeRegistrationRequest,
        caller: Caller | None,
        asked: ca.Request | None,
    ) -> Decision:
        """Who decides on its place: plain text, its certificate, or its token."""
        if self._identity is None:
            place = self._plain(request)
            return lambda _: place
        if caller is not None:
            key = asked.key_sha256 if asked is not None else caller.key_sha256
            return partial(joining.recognise, caller=caller, key_sha256=key)
        assert asked is not None  # read before: without a certificate it is needed
        return partial(
            joining.admit,
            request=request,
            key_sha256=asked.key_sha256,
            without_token=self._without_token,
            now_unix_s=time.time(),
        )

    def _plain(self, request: pb.NodeRegistrationRequest) -> Place:
        if request.join_token:
            raise Refusal("this master has given out no join token; join without one")
        if request.node_id and not NODE_ID.fullmatch(request.node_id):
            raise Refusal("node_id: 1 to 64 of A-Z, a-z, 0-9, _ . - and not only dots")
        return Place(request.node_id, "", self._trust_level, "")


def _register(
    connection: sa.Connection,
    request: pb.NodeRegistrationRequest,
    decide: Decision,
    now_unix_s: float,
) -> node_records.Row | str:
    """The node, or why not. In one transaction: no token is spent without a node for it."""
    place = decide(connection)
    if isinstance(place, str):
        return place
    return node_records.register(connection, request, place, now_unix_s)


def join_handler(registration: Registration) -> "grpc.GenericRpcHandler[Any, Any]":
    """What is served at `join`: RegisterNode, and nothing else."""
    register = grpc.unary_unary_rpc_method_handler(
        registration.at_join,
        request_deserializer=pb.NodeRegistrationRequest.FromString,
        response_serializer=pb.NodeRegistrationResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(NODE_SERVICE, {"RegisterNode": register})


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
