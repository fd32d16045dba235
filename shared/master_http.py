"""HTTP to the master, with the trust that the contract asks for. Blocks: call in a thread.

Plain text to a loopback address alone; else TLS 1.3, where the master proves itself by its own
authority under the name `hivemind-master`, or, behind a public front, by the machine's trust store
under its host's name. No redirect is followed, no proxy used.
"""

import contextlib
import email.utils
import http.client
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from shared.settings import is_loopback

MASTER_NAME = "hivemind-master"  # in the master's own certificates, and in no node's
TIMEOUT_S = 10.0  # of each step
WHOLE_S = 20.0  # from the first byte sent to the last that comes: steps can be many
MOST_BYTES = 2**20
SHOWN_CHARACTERS = 200  # of an error that may quote the other side
CLOCK_TOLERANCE_S = 120.0  # a clock that is further off explains a certificate's dates
DISCOVERY = "/.well-known/hivemind"
NOT_YET_VALID, EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_…
DATED = (NOT_YET_VALID, EXPIRED)
VERIFY_WORDS = {
    NOT_YET_VALID: "its certificate is not valid yet",
    EXPIRED: "its certificate has expired",
    18: "its certificate is signed by itself: not by an authority that this machine trusts",
    19: "its certificate is not of an authority that this machine trusts",
    20: "its certificate is not of an authority that this machine trusts",
    62: "its certificate is for another name: this is not the master",
    64: "its certificate is for another name: this is not the master",
}
REASON_WORDS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS there",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a certificate, and got none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of this node's certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "it does not believe this node's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that this node's certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not believe this node's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not believe this node's certificate",
}


class MasterHttpError(Exception):
    """The master's answer can't be had; the text says why, for the owner."""


class UntrustedError(MasterHttpError):
    """Who answers is not proven to be the master: a person has to look."""


class Check(NamedTuple):
    """What the other side must prove; a context without a name proves nothing."""

    context: ssl.SSLContext
    name: str


@dataclass(frozen=True)
class Answer:
    """`ahead_s`: this machine's clock against the master's, as far as it told its own."""

    body: bytes
    ahead_s: float | None
    by_authority: bool = False


def tls13(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def by_authority(authority: str) -> Check:
    """The master's own authority; a bundle of them while it changes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority)
    return Check(tls13(context), MASTER_NAME)


def by_trust_store(url: str) -> Check:
    return Check(tls13(ssl.create_default_context()), urlsplit(url).hostname or "")


def _unverified(url: str) -> Check:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return Check(tls13(context), urlsplit(url).hostname or "")


def get(url: str, path: str, authority: str = "") -> Answer:
    """Verified by the authority where there is one, else, or failing that, by the trust store."""
    if urlsplit(url).scheme == "http":
        return _get(url, path, None)
    failed = None
    if authority:
        try:
            answer = _get(url, path, by_authority(authority))
            return Answer(answer.body, answer.ahead_s, True)
        except ssl.SSLError as err:
            failed = err
    try:
        return _get(url, path, by_trust_store(url))
    except ssl.SSLError as err:
        raise UntrustedError(_why(url, failed or err)) from err


def get_unverified(url: str, path: str) -> Answer:
    """For what is compared with a digest that is known, and for a clock: trust nothing else."""
    try:
        return _get(url, path, _unverified(url))
    except ssl.SSLError as err:
        raise UntrustedError(f"{url}: {tls_words(err)}") from err


def clock_words(ahead_s: float) -> str:
    """How wrong this machine's clock is, for its owner."""
    off_s, side = abs(ahead_s), "ahead of" if ahead_s > 0 else "behind"
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, length_s = next(one for one in units if off_s >= 2 * one[1] or one[1] == 1)
    off = f"{off_s / length_s:.0f} {unit}"
    return f"this machine's clock is {off} {side} the master's: set it (timedatectl set-ntp true)"


class _Connection(http.client.HTTPConnection):
    """The certificate's name is not always the host's."""

    def __init__(self, host: str, port: int, check: Check | None) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._check = check
        self._timer: threading.Timer | None = None
        self.is_late = False

    def connect(self) -> None:
        super().connect()
        if self._check is not None:
            context, name = self._check
            self.sock = context.wrap_socket(self.sock, server_hostname=name)
        self._timer = threading.Timer(WHOLE_S, self._cut, (self.sock,))
        self._timer.daemon = True
        self._timer.start()

    def _cut(self, sock: socket.socket) -> None:
        """Whoever reads from it sees its end; TLS is not asked."""
        self.is_late = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def end(self) -> None:
        """`close` is the library's: it calls it before the answer is read."""
        if self._timer is not None:
            self._timer.cancel()
        self.close()


def _get(url: str, path: str, check: Check | None) -> Answer:
    """ssl.SSLError where the check fails."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if check is None and not is_loopback(host):
        raise UntrustedError(f"{url}: plain text only to a loopback address, else https://")
    port = parts.port or (443 if check else 80)
    connection = _Connection(host, port, check)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:  # a redirect too: it is followed nowhere
            raise MasterHttpError(f"{url}{path} answers {response.status}")
        body = response.read(MOST_BYTES)
        if connection.is_late:
            raise TimeoutError
        return Answer(body, _ahead_s(response.headers.get("Date")))
    except (OSError, http.client.HTTPException) as err:
        if connection.is_late:
            text = f"{url}{path}: no whole answer within {WHOLE_S:g} s"
            raise MasterHttpError(text) from err
        if isinstance(err, ssl.SSLError):
            raise
        raise MasterHttpError(f"{url}{path}: {_os_words(err)}") from err
    finally:
        connection.end()


def _ahead_s(date: str | None) -> float | None:
    try:
        return time.time() - email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _os_words(err: Exception) -> str:
    return str(err)[:SHOWN_CHARACTERS] or type(err).__name__


def _why(url: str, err: ssl.SSLError) -> str:
    """Why the master is not believed, for the owner; a wrong clock of our own is named as such."""
    if isinstance(err, ssl.SSLCertVerificationError) and err.verify_code in DATED:
        try:
            ahead_s = get_unverified(url, DISCOVERY).ahead_s
        except MasterHttpError:
            ahead_s = None
        if ahead_s is not None and abs(ahead_s) > CLOCK_TOLERANCE_S:
            return clock_words(ahead_s)
    return f"{url}: {tls_words(err)}"


def tls_words(err: ssl.SSLError) -> str:
    """What went wrong in a handshake, for the owner."""
    if isinstance(err, ssl.SSLCertVerificationError):
        return VERIFY_WORDS.get(err.verify_code, f"its certificate fails: {err.verify_message}")
    return REASON_WORDS.get(err.reason or "", f"TLS fails: {err.reason or err}")
