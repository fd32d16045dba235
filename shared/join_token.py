"""The join token, by which node and master trust each other before they have met. Pure.

`hm1.<digest>.<secret>`: the digest names the master's certificate authority (SHA-256 of the
certificate, base32), the secret is the right to join. It is shown nowhere: not in an error either.
"""

import base64
import re
from typing import NamedTuple

VERSION = "hm1"
DIGEST_CHARACTERS = 52  # of SHA-256 in base32, unpadded
LEAST_SECRET_CHARACTERS = 26  # 128 bits
_FORM = re.compile(
    rf"([a-z0-9]+)\.([a-z2-7]{{{DIGEST_CHARACTERS}}})\.([A-Za-z2-7]{{{LEAST_SECRET_CHARACTERS},128}}=*)"
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
