"""wg0.conf: text ↔ what it says. Pure: no clock, no files, no commands.

A file is kept as its lines, so that comments and keys which are not known here survive. What is
broken is refused with its line and the reason; neither ever holds a key's value. A file that the
worker made is known by the digest in its first line: changed by hand, it is its owner's.
"""

import base64
import binascii
import hashlib
import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_BYTES = 2**20
HEADER = (
    "# Made by HiveMind Worker, which keeps it up to date. Changed by hand it is yours: then it is"
    " used as it is, and never written again. sha256:"
)
KEY_MADE = "# The key was made at "
KEEPALIVE_S = 25  # keeps the way back open through NAT
LEAST_MTU, MOST_MTU = 576, 65535
NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,23}")  # of a key; longer: perhaps a secret, not shown
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
IGNORED = {
    "dns": "the machine's resolver stays as it is",
    "preup": "commands are not run",
    "postup": "commands are not run",
    "predown": "commands are not run",
    "postdown": "commands are not run",
    "saveconfig": "the file is only read",
}

Endpoint = tuple[str, int]


class ConfError(ValueError):
    """The file is broken; the text says in which line, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line


@dataclass(frozen=True)
class Interface:
    """`mtu` 0: as the way to the other end allows. `table`: auto, off, or a table's number."""

    private_key: str = field(repr=False)
    addresses: tuple[str, ...] = ()
    listen_port: int = 0
    fwmark: int = 0
    mtu: int = 0
    table: str = "auto"


@dataclass(frozen=True)
class Peer:
    """The other end, or one of them."""

    public_key: str
    preshared_key: str = field(default="", repr=False)
    endpoint: Endpoint | None = None
    allowed_ips: tuple[str, ...] = ()
    keepalive_s: int = 0


@dataclass(frozen=True)
class Conf:
    """`unheeded`: what is written there and not done, for the owner."""

    text: str = field(repr=False)
    interface: Interface
    peers: tuple[Peer, ...] = ()
    unheeded: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Made by the worker, and not changed since."""
        first, _, rest = self.text.partition("\n")
        return first == HEADER + _digest(rest)

    @property
    def key_made_unix_s(self) -> float:
        """0: it does not say."""
        found = re.search(rf"^{KEY_MADE}([0-9]{{1,12}}\.[0-9]{{3}}) ", self.text, re.MULTILINE)
        return float(found[1]) if found else 0.0


# ------------------------------------------------------------------ values


def read_key(raw: str) -> str:
    """32 bytes, not all zero, as base64 writes them and in no other way."""
    try:
        value = base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != 32 or base64.b64encode(value).decode() != raw:
        raise ValueError("must be a key: 32 bytes in base64, 44 characters")
    if not any(value):
        raise ValueError("must be a key, not zeros")
    return raw


def read_endpoint(raw: str) -> Endpoint:
    """HOST:PORT; an IPv6 address in brackets."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+):([0-9]{1,5})", raw, re.ASCII)
    if not found or not 1 <= int(found[2]) <= 65535:
        raise ValueError("must be HOST:PORT, an IPv6 address in brackets")
    host = found[1].strip("[]")
    if host != found[1]:
        ipaddress.IPv6Address(host)
    elif re.fullmatch(r"[0-9.]+", host):
        ipaddress.IPv4Address(host)
    elif len(host) > 253 or not HOST_NAME.fullmatch(host):
        raise ValueError("must name a host by its address or its DNS name")
    return host, int(found[2])


def show_endpoint(endpoint: Endpoint) -> str:
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_address(raw: str) -> str:
    """An address with the length of its network, 32 or 128 where none is given."""
    if not re.fullmatch(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?", raw, re.ASCII):
        raise ValueError("must be an address with a length, such as 10.8.0.2/16")
    return str(ipaddress.ip_interface(raw))


def read_network(raw: str) -> str:
    return str(ipaddress.ip_interface(read_address(raw)).network)


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(raw: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", raw, re.ASCII) or not least <= int(raw) <= most:
            raise ValueError(f"must be a number from {least} to {most}")
        return int(raw)

    return read


def _or_off(read: Callable[[str], int]) -> Callable[[str], int]:
    return lambda raw: 0 if raw.lower() == "off" else read(raw)


def _mark(raw: str) -> int:
    if re.fullmatch(r"0x[0-9A-Fa-f]{1,8}", raw):
        return int(raw, 16)
    return _number(0, 2**32 - 1)(raw)


def _table(raw: str) -> str:
    return raw if raw in ("auto", "off", "main") else str(_number(1, 2**32 - 1)(raw))


def _list(read: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    def read_all(raw: str) -> tuple[str, ...]:
        return tuple(read(part.strip()) for part in raw.split(",")) if raw else ()

    return read_all


@dataclass(frozen=True)
class _Key:
    """A key of the file: the field that it fills, and how its value is read."""

    name: str
    field: str
    read: Callable[[str], Any]
    many: bool = False


INTERFACE, PEER = "interface", "peer"
KEYS = {
    INTERFACE: {
        "privatekey": _Key("PrivateKey", "private_key", read_key),
        "address": _Key("Address", "addresses", _list(read_address), many=True),
        "listenport": _Key("ListenPort", "listen_port", _number(0, 65535)),
        "fwmark": _Key("FwMark", "fwmark", _or_off(_mark)),
        "mtu": _Key("MTU", "mtu", _number(LEAST_MTU, MOST_MTU)),
        "table": _Key("Table", "table", _table),
    },
    PEER: {
        "publickey": _Key("PublicKey", "public_key", read_key),
        "presharedkey": _Key("PresharedKey", "preshared_key", read_key),
        "endpoint": _Key("Endpoint", "endpoint", read_endpoint),
        "allowedips": _Key("AllowedIPs", "allowed_ips", _list(read_network), many=True),
        "persistentkeepalive": _Key(
            "PersistentKeepalive", "keepalive_s", _or_off(_number(0, 65535))
        ),
    },
}
EMPTY_MEANS_NONE = "allowedips"


# ------------------------------------------------------------------ reading


@dataclass
class _Section:
    kind: str
    line: int
    values: dict[str, Any] = field(default_factory=dict)


def parse_bytes(data: bytes) -> Conf:
    """As it comes from the disk."""
    if len(data) > MOST_BYTES:
        raise ConfError(1, f"the file is larger than {MOST_BYTES} bytes")
    try:
        return parse(data.decode())
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise ConfError(line, "there is a byte that is no text (UTF-8)") from err


def parse(text: str) -> Conf:
    """Every section and key that is known here is checked; of the others only their form."""
    sections: list[_Section] = []
    unheeded: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        _check_characters(number, line)
        content = line.partition("#")[0].strip()
        if content.startswith("["):
            sections.append(_section(number, content, sections))
        elif content:
            unheeded += _take(number, content, sections)
    if not sections or sections[0].kind != INTERFACE:
        raise ConfError(sections[0].line if sections else 1, "there is no [Interface] before it")
    return Conf(text, _interface(sections[0]), _peers(sections[1:]), tuple(unheeded))


def _check_characters(number: int, line: str) -> None:
    if any((ord(one) < 32 and one not in "\t\r") or ord(one) == 127 for one in line):
        raise ConfError(number, "there is a control character")


def _section(number: int, content: str, before: list[_Section]) -> _Section:
    found = re.fullmatch(r"\[\s*([A-Za-z]+)\s*\]", content)
    if found is None:
        raise ConfError(number, "must be [Interface] or [Peer]")
    kind = found[1].lower()
    if kind not in KEYS:
        raise ConfError(number, "there is no such section: must be [Interface] or [Peer]")
    if kind == INTERFACE and any(one.kind == INTERFACE for one in before):
        raise ConfError(number, "there is a second [Interface]")
    return _Section(kind, number)


def _take(number: int, content: str, sections: list[_Section]) -> Iterator[str]:
    """Fills the last section; yields what is not heeded."""
    name, equals, value = (part.strip() for part in content.partition("="))
    if not equals:
        raise ConfError(number, "must be KEY = VALUE")
    if not NAME.fullmatch(name):
        raise ConfError(number, "there is no name of a key before the =")
    if not sections:
        raise ConfError(number, f"{name} stands before any section")
    section = sections[-1]
    key = KEYS[section.kind].get(name.lower())
    if key is None:
        yield _unheeded(number, name, section.kind)
        return
    if not value and name.lower() != EMPTY_MEANS_NONE:
        raise ConfError(number, f"{key.name} has no value")
    try:
        _fill(section, key, value)
    except ValueError as err:
        raise ConfError(number, f"{key.name} {_without_value(err)}") from err


def _unheeded(number: int, name: str, kind: str) -> str:
    for other, keys in KEYS.items():
        if name.lower() in keys:
            raise ConfError(number, f"{keys[name.lower()].name} belongs under [{other.title()}]")
    why = IGNORED.get(name.lower(), f"there is no such key under [{kind.title()}]")
    return f"line {number}: {name}: {why}"


def _fill(section: _Section, key: _Key, raw: str) -> None:
    value, known = key.read(raw), section.values.get(key.field)
    if key.many:
        doubled = [one for one in value if one in (known or ()) or value.count(one) > 1]
        if doubled:
            raise ValueError("names the same twice")
        section.values[key.field] = (known or ()) + value
    elif known is not None:
        raise ValueError("is given twice")
    else:
        section.values[key.field] = value


def _without_value(err: ValueError) -> str:
    """Python's own errors quote what they were given."""
    said = str(err)
    own = said.startswith(("must ", "is given ", "names "))
    return said if own else "must be of IPv4 or IPv6, its length within the family's"


def _interface(section: _Section) -> Interface:
    if "private_key" not in section.values:
        raise ConfError(section.line, "this [Interface] has no PrivateKey")
    return Interface(**section.values)


def _peers(sections: list[_Section]) -> tuple[Peer, ...]:
    keys: set[str] = set()
    networks: set[str] = set()
    for section in sections:
        key, allowed = section.values.get("public_key"), section.values.get("allowed_ips", ())
        if key is None:
            raise ConfError(section.line, "this [Peer] has no PublicKey")
        if key in keys:
            raise ConfError(section.line, "an earlier [Peer] has the same PublicKey")
        if networks.intersection(allowed):
            raise ConfError(section.line, "an earlier [Peer] has one of these AllowedIPs")
        keys.add(key)
        networks.update(allowed)
    return tuple(Peer(**section.values) for section in sections)


# ------------------------------------------------------------------ writing


def written(interface: Interface, peers: tuple[Peer, ...], key_made_unix_s: float) -> Conf:
    """A file of the worker's own. The time is rounded up: not earlier than who asked for it."""
    made_unix_s = math.ceil(key_made_unix_s * 1000) / 1000
    rest = "\n".join((
        f"{KEY_MADE}{made_unix_s:.3f} (seconds since 1970).", "",
        *_lines(interface, peers, {}), "",
    ))  # fmt: skip
    return parse(f"{HEADER}{_digest(rest)}\n{rest}")


def for_wg(conf: Conf, places: Mapping[Endpoint, Endpoint], fwmark: int) -> str:
    """What the command wg takes: no key of wg-quick's, every name of a host resolved."""
    plain = Interface(
        conf.interface.private_key,
        listen_port=conf.interface.listen_port,
        fwmark=conf.interface.fwmark or fwmark,
    )
    return "\n".join((*_lines(plain, conf.peers, places, resolved=True), ""))


def _lines(
    interface: Interface,
    peers: tuple[Peer, ...],
    places: Mapping[Endpoint, Endpoint],
    *,
    resolved: bool = False,
) -> Iterator[str]:
    yield "[Interface]"
    yield f"PrivateKey = {interface.private_key}"
    yield from _line("Address", ", ".join(interface.addresses))
    yield from _line("ListenPort", interface.listen_port)
    yield from _line("FwMark", interface.fwmark)
    yield from _line("MTU", interface.mtu)
    yield from _line("Table", interface.table if interface.table != "auto" else "")
    for peer in peers:
        place = places.get(peer.endpoint) if resolved and peer.endpoint else peer.endpoint
        yield from ("", "[Peer]", f"PublicKey = {peer.public_key}")
        yield from _line("PresharedKey", peer.preshared_key)
        yield from _line("Endpoint", show_endpoint(place) if place else "")
        yield from _line("AllowedIPs", ", ".join(peer.allowed_ips))
        yield from _line("PersistentKeepalive", peer.keepalive_s)


def _line(name: str, value: str | int) -> Iterator[str]:
    if value:
        yield f"{name} = {value}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
