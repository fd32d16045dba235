"""The node's identity on disk: its key, its certificate, the master's authority. Methods block.

`node.key` (0600) is made before the first call and kept for life. `master-ca.crt` and `node.crt`
change by registration alone, each replaced as a whole, the authority first: killed in between, the
node joins again with the same key, and is the same node.
"""

import logging
import os
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from shared.certificate import Validity, certificates, digest_of, validity, with_digest
from shared.files import sync_directory, write_atomic

log = logging.getLogger("master_link")

RENEW_AT = 2 / 3  # of the certificate's life
REQUEST_TIMEOUT_S = 60.0
ROOT = Path(__file__).parents[2]


class IdentityError(Exception):
    """The node's identity can't be made, read or stored; the text says why."""


@dataclass(frozen=True)
class Credentials:
    """What a connection proves itself with, and by what it proves the other side."""

    authority: bytes
    key: bytes = field(default=b"", repr=False)
    certificate: bytes = b""


class Identity:
    """`authority`: what is trusted, PEM, empty before the first time. `valid`: None without a
    certificate that fits the key."""

    def __init__(self, lib: Path) -> None:
        self.lib = lib
        self._key = lib / "node.key"
        self._certificate = lib / "node.crt"
        self._authority = lib / "master-ca.crt"
        self.authority = ""
        self.valid: Validity | None = None

    def load(self) -> None:
        """What can't be used counts as not there: the node joins again."""
        self.authority, self.valid = "", None
        try:
            if self._authority.exists():
                self.authority = _authorities(self._authority.read_text())
            if self.authority and self._certificate.exists():
                self.valid = _fit(self._certificate, self._key)
        except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
            log.warning("%s or %s is of no use: %s", self._authority, self._certificate, err)

    # -------------------------------------------------------------- what it is good for

    def fits(self, authority: str, now_unix_s: float) -> bool:
        """It has a certificate that is valid, of a master with this authority."""
        same = with_digest(authority, map(digest_of, certificates(self.authority)))
        return self.valid is not None and bool(same) and now_unix_s < self.valid.until_unix_s

    @property
    def renew_at_unix_s(self) -> float:
        if self.valid is None:
            return 0.0
        start_s, end_s = self.valid
        return start_s + RENEW_AT * (end_s - start_s)

    @property
    def digest(self) -> str:
        """Of the authority that is trusted; of the newest, while it changes."""
        known = certificates(self.authority)
        return digest_of(known[-1]) if known else ""

    def credentials(self) -> Credentials:
        """As the node that it is."""
        return Credentials(
            self.authority.encode(), self._key.read_bytes(), self._certificate.read_bytes()
        )

    # -------------------------------------------------------------- changes

    def request(self) -> bytes:
        """A certificate request; the key is on disk when this returns."""
        done = subprocess.run(
            [sys.executable, "-m", "procs.master_link.request", str(self._key.parent)],
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", "")},  # nothing of ours: no token
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=REQUEST_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise IdentityError(f"no certificate can be asked for: {why}")
        return done.stdout

    def trust(self, authority: str) -> None:
        """From now on."""
        write_atomic(self._authority, authority.encode())
        self.authority = authority

    def keep(self, certificate: bytes, authority: str) -> None:
        """What the master gave, if it is for this node's key."""
        aside = self._certificate.with_name("node.crt.new")
        write_atomic(aside, certificate)
        try:
            valid = _fit(aside, self._key)
            authority = _authorities(authority)
        except (OSError, ValueError) as err:
            raise IdentityError(f"what the master gave is no certificate for us: {err}") from err
        if authority != self.authority:
            self.trust(authority)
        aside.replace(self._certificate)
        sync_directory(self._certificate.parent)
        self.valid = valid


def _authorities(bundle: str) -> str:
    """ValueError or ssl.SSLError: there is none by which anybody could be proven."""
    known = "".join(certificates(bundle))
    if not known:
        raise ValueError("it names no authority")
    ssl.create_default_context(cadata=known)
    return known


def _fit(certificate: Path, key: Path) -> Validity:
    """ssl.SSLError: it is for another key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(certificate, key)
    return validity(certificate.read_text())
