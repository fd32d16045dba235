"""Digests and dates of certificates, without a library for them: that would cost 9 MB. Pure.

What is read is believed: for certificates whose origin is proven, or proven by their digest.
"""

import calendar
import hashlib
import re
import ssl
import time
from collections.abc import Iterable
from typing import NamedTuple

from shared.join_token import base32

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION = 0xA0  # an optional field before the serial number


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


class Validity(NamedTuple):
    """Both ends belong to it."""

    from_unix_s: float
    until_unix_s: float


def validity(certificate: str) -> Validity:
    """Of the first certificate in a PEM text; ValueError: there is none that can be read."""
    first, end, _ = certificate.partition("-----END CERTIFICATE-----")
    try:
        whole = _value(ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN") :] + end), 0)
        fields = _fields(_value(whole, 0))
        place = 4 if fields[0][0] == _VERSION else 3  # serial, algorithm, issuer come before it
        start, stop = _fields(fields[place][1])
        return Validity(_unix_s(*start), _unix_s(*stop))
    except IndexError as err:
        raise ValueError("it ends too early") from err


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and value of each element of a sequence."""
    found, at = [], 0
    while at < len(data):
        start, length = _header(data, at)
        found.append((data[at], data[start : start + length]))
        at = start + length
    return found


def _value(data: bytes, at: int) -> bytes:
    start, length = _header(data, at)
    return data[start : start + length]


def _header(data: bytes, at: int) -> tuple[int, int]:
    """Where the value of the element at `at` begins, and its length."""
    length = data[at + 1]
    if length < 0x80:
        return at + 2, length
    size = length & 0x7F
    return at + 2 + size, int.from_bytes(data[at + 2 : at + 2 + size], "big")


def _unix_s(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag {tag} is no time")
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
