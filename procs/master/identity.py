"""The master's identity on disk, `identity/` in its data folder (0700), and as TLS wants it.

`ca.pem`: the authority, key and certificate in one file. `next.pem`: its successor while the two
change: it signs nodes already, both are trusted, and after the life of a certificate it takes
over. `master.pem`: the master's own. `admin.token`: what a client must show. Each file 0600.
"""

import logging
import secrets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509

from procs.master import ca
from procs.master.ca import Pair, Request
from shared.certificate import digest_of
from shared.files import write_atomic
from shared.join_token import Token, base32, read_token, write_token
from shared.master_http import MASTER_NAME, tls13

log = logging.getLogger("master")

SECRET_BYTES = 20
ADMIN_VERSION = "hma1"
Clock = Callable[[], float]


class IdentityError(Exception):
    """A file of the master's identity cannot be used."""


@dataclass(frozen=True)
class _State:
    """What is in force; replaced as a whole."""

    now: Pair
    next: Pair | None
    master_key: str
    master_certificate: str

    @property
    def bundle(self) -> str:
        return self.now.pem + (self.next.pem if self.next else "")


class Identity:
    """Made at the first start. Methods block; any thread may call them."""

    def __init__(self, data: Path, clock: Clock) -> None:
        self._folder, self._clock = data / "identity", clock
        self._changing = threading.Lock()
        self._https: list[ssl.SSLContext] = []
        self._version = 0
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._state = self._load()
            self.admin_token = self._admin_token()
        except (OSError, ValueError) as err:
            raise IdentityError(f"cannot use {self._folder}: {err}") from err

    # -------------------------------------------------------------- what it says

    @property
    def bundle(self) -> str:
        """What nodes trust: the authority, and its successor while they change."""
        return self._state.bundle

    @property
    def digest(self) -> str:
        """Of the authority that signs the master's own certificate: for tokens."""
        return digest_of(self._state.now.pem)

    @property
    def version(self) -> int:
        """Grows with each change."""
        return self._version

    @property
    def admin_token_file(self) -> Path:
        return self._folder / "admin.token"

    def issue(self, node_id: str, request: Request) -> str:
        """A node's certificate."""
        signer = self._state.next or self._state.now
        return ca.certificate_pem(ca.issue(signer, node_id, request.key, self._clock()))

    # -------------------------------------------------------------- as TLS wants it

    def server_credentials(self, *, client_certificate: bool) -> grpc.ServerCredentials:
        """For a gRPC server; what changes later counts from the next connection on."""
        given = -1

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given == self._version:
                return None
            given = self._version
            return self._server_configuration(client_certificate)

        first = self._server_configuration(client_certificate)
        return grpc.dynamic_ssl_server_credentials(
            first,
            fetch,  # type: ignore[arg-type]  # None: nothing has changed
            client_certificate,
        )

    def _server_configuration(
        self, client_certificate: bool
    ) -> grpc.ServerCertificateConfiguration:
        state = self._state
        pair = (state.master_key.encode(), state.master_certificate.encode())
        roots = state.bundle.encode() if client_certificate else None
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a call to a worker."""
        state = self._state
        return grpc.ssl_channel_credentials(
            state.bundle.encode(), state.master_key.encode(), state.master_certificate.encode()
        )

    def https_context(self) -> ssl.SSLContext:
        """For HTTPS; it is changed in place later."""
        context = tls13(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.load_cert_chain(self._folder / "master.pem")
        self._https.append(context)
        return context

    # -------------------------------------------------------------- changes

    def refresh(self) -> None:
        """Renew what is due: the master's certificate, the authority that ends its change."""
        with self._changing:
            self._take(self._load())

    def rotate(self) -> str:
        """Begin the change to a new authority; its digest. Nothing new while one is under way."""
        with self._changing:
            if self._state.next is None:
                self._write("next.pem", ca.make_authority(self._clock()))
                self._take(self._load())
            assert self._state.next is not None  # its change has just begun
            return digest_of(self._state.next.pem)

    def _take(self, state: _State) -> None:
        before, self._state = self._state, state
        if (state.bundle, state.master_certificate) == (before.bundle, before.master_certificate):
            return
        self.admin_token = self._admin_token()
        for context in self._https:
            context.load_cert_chain(self._folder / "master.pem")
        self._version += 1
        log.info("the authority is %s", " and ".join(map(digest_of, _pems(state))))

    # -------------------------------------------------------------- the files

    def _load(self) -> _State:
        now_unix_s = self._clock()
        successor = self._read("next.pem")
        if successor and now_unix_s >= _takes_over_unix_s(successor):
            (self._folder / "next.pem").replace(self._folder / "ca.pem")
            successor = None
        authority = self._read("ca.pem")
        if authority is None:
            authority = ca.make_authority(now_unix_s)
            self._write("ca.pem", authority)
        own = self._read("master.pem")
        if own is None or not _is_good(own.certificate, authority, now_unix_s):
            own = self._make_own(authority, now_unix_s)
        return _State(authority, successor, ca.key_pem(own.key), own.pem)

    def _make_own(self, authority: Pair, now_unix_s: float) -> Pair:
        key = ca.make_key()
        own = Pair(key, ca.issue(authority, MASTER_NAME, key.public_key(), now_unix_s))
        self._write("master.pem", own)
        return own

    def _read(self, name: str) -> Pair | None:
        path = self._folder / name
        if not path.exists():
            return None
        try:
            return ca.read_pair(path.read_bytes())
        except (ValueError, TypeError) as err:
            raise IdentityError(f"{path} is not a key with its certificate: {err}") from err

    def _write(self, name: str, pair: Pair) -> None:
        content = ca.key_pem(pair.key) + pair.pem
        write_atomic(self._folder / name, content.encode(), 0o600)

    def _admin_token(self) -> str:
        """Its secret stays; the digest in it is that of the authority now in force."""
        path, secret = self.admin_token_file, base32(secrets.token_bytes(SECRET_BYTES))
        known = path.read_text().strip() if path.exists() else ""
        if known:
            secret = read_token(known, ADMIN_VERSION).secret
        token = write_token(Token(self.digest, secret), ADMIN_VERSION)
        if token != known:
            write_atomic(path, token.encode() + b"\n", 0o600)
        return token


def _takes_over_unix_s(successor: Pair) -> float:
    """When no certificate of its predecessor's is valid any more."""
    made_unix_s = successor.certificate.not_valid_before_utc.timestamp() + ca.BACKDATED_S
    return made_unix_s + ca.CERTIFICATE_LIFE_S


def _is_good(certificate: x509.Certificate, authority: Pair, now_unix_s: float) -> bool:
    return (
        certificate.issuer == authority.certificate.subject
        and certificate.not_valid_before_utc.timestamp() <= now_unix_s
        and now_unix_s < ca.renew_at_unix_s(certificate)
    )


def _pems(state: _State) -> list[str]:
    return [one.pem for one in (state.now, state.next) if one is not None]
