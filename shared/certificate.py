"""From when until when a certificate is valid, read without a library: that would cost 9 MB.

Only for certificates whose origin is proven: what is read is believed.
"""

import calendar
import ssl
import time
from typing import NamedTuple

_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION = 0xA0  # an optional field before the serial number


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
