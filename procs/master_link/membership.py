"""How the node stands with its master: found, trusted, certified, and what the owner must know.

Joins by token or first use, renews at two thirds of a certificate's life. With plain text, on
loopback, there is nothing of it. Decides what to prove; calls are made by who owns the connection.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from procs.master_link import tls
from procs.master_link.discovery import Discovered, discover
from procs.master_link.identity import Credentials, Identity, IdentityError
from shared.join_token import read_token
from shared.master_http import CLOCK_TOLERANCE_S, clock_words
from shared.pb import hivemind_pb2 as pb
from shared.settings import Settings

log = logging.getLogger("master_link")

LOOK_EVERY_S = 3600.0  # at the date: the clock that runs through it may be set, or sleep
RENEW_RETRY_S = 60.0

Register = Callable[[bytes, str], Awaitable[pb.NodeRegistrationResponse]]


class NotTakenError(Exception):
    """The master does not take this node, or not yet; the text is its reason."""


class RenewedError(Exception):
    """The certificate is a new one: connect again, with it, at once."""


class Membership:
    """`warnings`: what the owner should see, by its subject. `shown` is called at a change."""

    def __init__(self, settings: Settings, identity: Identity, shown: Callable[[], None]) -> None:
        self._url, self._identity, self._shown = settings.master_url, identity, shown
        self._tls = settings.master_url.startswith("https:")
        self._token_text = settings.join_token
        self._ahead_s, self._asked_s = 0.0, float("-inf")
        self.warnings: dict[str, str] = {}
        self.joined = asyncio.Event()  # there is a certificate

    @property
    def tls(self) -> bool:
        return self._tls

    @property
    def authority_digest(self) -> str:
        return self._identity.digest

    @property
    def certificate_until_unix_s(self) -> float:
        return self._identity.valid.until_unix_s if self._identity.valid else 0.0

    # -------------------------------------------------------------- finding

    async def discover(self) -> Discovered:
        token = read_token(self._token_text) if self._tls and self._token_text else None
        found = await asyncio.to_thread(discover, self._url, self._identity.authority, token)
        self.note_clock(found.ahead_s)
        if found.authority and not self._identity.authority and token is None:
            await self._trust_first(found.authority)
        return found

    async def _trust_first(self, authority: str) -> None:
        try:
            await asyncio.to_thread(self._identity.trust, authority)
        except OSError as err:
            raise IdentityError(f"the master's authority can't be stored: {err}") from err
        log.warning(
            "this master is trusted from now on, by the word of the machine's trust store;"
            " the digest of its authority is %s",
            self._identity.digest,
        )
        self._shown()

    def note_clock(self, ahead_s: float) -> None:
        """`ahead_s`: of the master's clock."""
        self._ahead_s = ahead_s
        self.warn("clock", clock_words(ahead_s) if abs(ahead_s) > CLOCK_TOLERANCE_S else "")

    def warn(self, subject: str, text: str) -> None:
        """Empty: all is well again."""
        if self.warnings.get(subject, "") == text:
            return
        self.warnings.pop(subject, None)
        if text:
            self.warnings[subject] = text
            log.warning("%s", text)
        self._shown()

    def withdraw(self, subject: str, text: str) -> None:
        """Unless something newer is said of it."""
        if self.warnings.get(subject) == text:
            self.warn(subject, "")

    # -------------------------------------------------------------- joining

    async def certified(self, found: Discovered, register: Register) -> Credentials | None:
        """What to connect with; None: plain text. Joins if there is nothing that is valid."""
        if not found.authority:
            return None
        if not self._identity.fits(found.authority, self._now_unix_s()):
            if self._identity.valid is not None:
                log.warning("the node's certificate is not valid any more: joining again")
            await self._ask(register, self._token_text, found.authority)
        self.joined.set()
        return await asyncio.to_thread(self.credentials)

    async def keep_valid(self, register: Register) -> None:
        """Renews in time; ends by RenewedError. Without a certificate it never does anything."""
        while True:
            left_s = self._identity.renew_at_unix_s - self._now_unix_s()
            left_s = max(left_s, self._asked_s + RENEW_RETRY_S - time.monotonic())
            if self._identity.valid is None or left_s > 0:
                await asyncio.sleep(LOOK_EVERY_S if left_s <= 0 else min(left_s, LOOK_EVERY_S))
                continue
            try:
                await self._ask(register, "", self._identity.authority)
            except (IdentityError, NotTakenError) as err:
                self.warn("certificate", f"the node's certificate is not renewed: {err}")
                continue
            self.warn("certificate", "")
            raise RenewedError("the certificate was renewed")

    async def _ask(self, register: Register, token: str, authority: str) -> None:
        """A new certificate, on disk when this returns."""
        self._asked_s = time.monotonic()
        request = await asyncio.to_thread(self._identity.request)
        response = await register(request, token)
        given = response.certificate_authority.decode(errors="replace") or authority
        try:
            await asyncio.to_thread(self._identity.keep, response.certificate, given)
        except (OSError, ValueError) as err:
            raise IdentityError(f"the certificate can't be stored: {err}") from err
        log.info("the node has a new certificate, of the authority %s", self._identity.digest)

    async def why_refused(self, found: Discovered | None, words: str) -> str:
        """What gRPC does not say of a failed handshake; empty: it was something else."""
        if found is None or not found.authority or not tls.looks_like_tls(words):
            return ""
        address, mine = found.join, Credentials(found.authority.encode())
        if self._identity.fits(found.authority, self._now_unix_s()):
            with contextlib.suppress(IdentityError):
                address, mine = found.grpc, await asyncio.to_thread(self.credentials)
        return await asyncio.to_thread(tls.why_refused, address, mine, self._identity.lib)

    def credentials(self) -> Credentials:
        """As they are now. Blocks."""
        try:
            return self._identity.credentials()
        except OSError as err:
            raise IdentityError(f"the node's identity can't be read: {err}") from err

    def _now_unix_s(self) -> float:
        """By the master's clock, as far as it is known."""
        return time.time() - self._ahead_s
