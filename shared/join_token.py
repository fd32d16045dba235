"""The join token, by which node and master trust each other before they have met. Pure.

`hm1.<digest>.<secret>`: the digest names the master's certificate authority (SHA-256 of the
certificate, base32), the secret is the right to join. It is shown nowhere: not in an error either.
"""

import base64
import hashlib
import re
import ssl
from collections.abc import Iterable
from typing import NamedTuple

VERSION = "hm1"
DIGEST_CHARACTERS = 52  # of SHA-256 in base32, unpadded
LEAST_SECRET_CHARACTERS = 26  # 128 bits
_FORM = re.compile(
    rf"([a-z0-9]+)\.([a-z2-7]{{{DIGEST_CHARACTERS}}})\.([a-z2-7]{{{LEAST_SECRET_CHARACTERS},128}})"
)
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)


class Token(NamedTuple):
    """A token's two parts."""

    digest: str
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.digest}, …)"


def read_token(text: str, version: str = VERSION) -> Token:
    """ValueError says what is wrong, without the token."""
    found = _FORM.fullmatch(text)
    if found is None or found[1] != version:
        raise ValueError(f"must be a token {version}.….… as the master's owner gave it")
    return Token(found[2], found[3])


def write_token(token: Token, version: str = VERSION) -> str:
    return f"{version}.{token.digest}.{token.secret}"


def base32(data: bytes) -> str:
    return base64.b32encode(data).decode().lower().rstrip("=")


def certificates(bundle: str) -> list[str]:
    """Each certificate of a PEM bundle, as one line feed ended PEM."""
    return [one + "\n" for one in _CERTIFICATE.findall(bundle)]


def digest_of(certificate: str) -> str:
    """The digest by which a token names this authority; ValueError: it is no certificate."""
    return base32(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest())


def with_digest(bundle: str, digests: Iterable[str]) -> list[str]:
    """Those certificates of a bundle that have one of these digests."""
    wanted = set(digests)
    return [one for one in certificates(bundle) if digest_of(one) in wanted]
