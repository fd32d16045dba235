"""Who calls over gRPC, and whether they may. With plain text, on loopback, everyone may.

With TLS a call counts for the node in its certificate, for no other, as long as the certificate
is valid and the node not revoked. All refusals are told here, in the log and to the caller.
"""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from procs.master import ca
from shared.master_http import MASTER_NAME

log = logging.getLogger("master")

Context = grpc.aio.ServicerContext[Any, Any]
TLS = "TLSv1.3"
SHOWN_CHARACTERS = 250


class Caller(NamedTuple):
    """The node in a client's certificate."""

    node_id: str
    key_sha256: str
    until_unix_s: float


class Gate:
    """Stands before each call. `revoked` is the database's, kept here for speed."""

    def __init__(self, *, tls: bool, clock: Callable[[], float] = time.time) -> None:
        self.tls = tls
        self.revoked: set[str] = set()
        self._clock = clock

    async def caller(self, context: Context) -> Caller | None:
        """Who calls; None with plain text."""
        if not self.tls:
            return None
        await self.check_tls(context)
        caller = _read(b"".join(context.auth_context().get("x509_pem_cert", ())))
        if caller is None or caller.node_id == MASTER_NAME:
            await deny(context, "a node's certificate is needed here")
        if self._clock() > caller.until_unix_s:
            text = f"the certificate of {caller.node_id} has expired"
            await deny(context, text, grpc.StatusCode.UNAUTHENTICATED)
        await self.check_revoked(context, caller.node_id)
        return caller

    async def check(self, context: Context, node_id: str) -> None:
        """The node that the message names is the one that calls."""
        caller = await self.caller(context)
        if caller is None:  # plain text: its word counts
            await self.check_revoked(context, node_id)
        elif caller.node_id != node_id:
            await deny(context, f"{caller.node_id} may not act as {node_id or 'no node'}")

    async def check_tls(self, context: Context) -> None:
        version = b"".join(context.auth_context().get("ssl_tls_version", ())).decode()
        if version != TLS:
            await deny(context, f"{version} is not spoken here, {TLS} is")

    async def check_revoked(self, context: Context, node_id: str) -> None:
        """Also in the middle of a long stream."""
        if node_id in self.revoked:
            await deny(context, f"{node_id} was revoked by the master's owner")


async def deny(
    context: Context, text: str, code: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED
) -> NoReturn:
    log.warning("refused %s: %s", context.peer(), line(text))
    await context.abort(code, line(text))
    raise AssertionError("abort always raises")


def line(text: str) -> str:
    """For a log, as one line of it: others wrote parts of it."""
    shown = text[:SHOWN_CHARACTERS] + "…" * (len(text) > SHOWN_CHARACTERS)
    return "".join(c if c.isprintable() else "?" for c in shown)


@lru_cache(4096)  # one for each node: a certificate is read once, not at each call
def _read(pem: bytes) -> Caller | None:
    if not pem:
        return None
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not names:
        return None
    until_unix_s = certificate.not_valid_after_utc.timestamp()
    return Caller(str(names[0].value), ca.key_sha256_of(certificate), until_unix_s)
