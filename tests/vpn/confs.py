"""Configurations of all kinds for Hypothesis, and broken ones by hand."""

import base64
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

from procs.vpn.conf import Interface, Peer

BITS = {4: 32, 6: 128}


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32)).decode()


def address(version: int, number: int, length: int) -> str:
    """As ipaddress writes it; what does not fit the family is cut."""
    bits = BITS[version]
    bare = (ipaddress.IPv4Address, ipaddress.IPv6Address)[version == 6](number % 2**bits)
    return f"{bare}/{min(length, bits)}"


LABELS = ("a", "vpn", "x1-2", "_dmarc", "9z", "m" * 63)
TABLES = ("auto", "off", "main", "1", str(2**32 - 1))
EXTRA = (
    "", "# plain", "  # Ωμέγα 漢字 🐝", "#[Peer]", "# PrivateKey = none = #", "Jc=4", "   ",
    "PostUp = echo # hello", "DNS = 9.9.9.9", "Colour=blue", "\tsaveconfig =  true",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A configuration, and what an owner writes into it besides: (line, text)."""

    interface: Interface
    peers: tuple[Peer, ...]
    extras: tuple[tuple[int, str], ...]


def made(seed: int) -> Made:
    """Of one draw: drawing each part by itself takes Hypothesis seconds in thousands."""
    of = Random(seed)
    interface = Interface(
        _key(of),
        tuple({_address(of): None for _ in range(of.randrange(4))}),
        of.choice((0, of.randrange(65536))),
        of.choice((0, of.randrange(2**32))),
        of.choice((0, of.randrange(576, 65536))),
        of.choice(TABLES),
    )
    taken: set[str] = set()
    peers = tuple(_peer(of, taken) for _ in range(of.randrange(4)))
    extras = tuple((of.randrange(20), of.choice(EXTRA)) for _ in range(of.randrange(5)))
    return Made(interface, peers, extras)


def _key(of: Random) -> str:
    return key(of.choice((of.getrandbits(256), of.getrandbits(8))) or 1)


def _address(of: Random) -> str:
    return address(of.choice((4, 6)), of.getrandbits(128), of.randrange(129))


def _peer(of: Random, taken: set[str]) -> Peer:
    networks = {str(ipaddress.ip_interface(_address(of)).network) for _ in range(of.randrange(4))}
    host = of.choice((".".join(of.choices(LABELS, k=3)), _address(of).partition("/")[0]))
    allowed = tuple(sorted(networks - taken))
    taken |= networks
    return Peer(
        key(of.getrandbits(256) or 1),
        of.choice(("", _key(of))),
        of.choice((None, (host, of.randrange(1, 65536)))),
        allowed,
        of.choice((0, of.randrange(65536))),
    )


CONFIGURATIONS = st.integers(0, 2**64).map(made)


def with_extras(text: str, extras: Iterable[tuple[int, str]]) -> str:
    """As an owner writes: comments, unknown keys, blank lines below the first section."""
    lines = text.split("\n")
    first = lines.index("[Interface]") + 1
    for place, line in extras:
        lines.insert(min(len(lines), first + place), line)
    return "\n".join(lines)


# ------------------------------------------------------------------ broken

A = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
B = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
C = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
ZEROS = base64.b64encode(bytes(32)).decode()
GOOD = f"""\
[Interface]
PrivateKey = {A}
Address = 10.8.0.2/16
ListenPort = 51821
FwMark = 0xca6c
MTU = 1400
Table = auto

[Peer]
PublicKey = {B}
PresharedKey = {C}
Endpoint = vpn.example.org:51820
AllowedIPs = 10.8.0.0/16, fd00::/64
PersistentKeepalive = 25
"""
LINE = {text.split(" =")[0]: number for number, text in enumerate(GOOD.splitlines(), 1)}
BAD_VALUES = {
    "PrivateKey": [
        "", "x", A[:-1], A[:-2] + "==", f"{A}=", A[1:], A.replace("=", "*"), A + A, ZEROS,
        "c8" * 32, A[:20] + " " + A[20:], A[:42] + "l=", '"' + A + '"', "é" * 44,
    ],
    "PublicKey": ["", "none", B[:-1], "A" * 44, B + "=", B[:43] + "A", ZEROS, "-" * 43 + "="],
    "PresharedKey": ["", "0", C[:30], C + "AAAA", ZEROS],
    "Address": [
        "", "10.8.0.2/33", "10.8.0.256/24", "10.8.0/24", "10.8.0.2/", "/24", "10.8.0.2/-1",
        "10.8.0.2/255.255.0.0", "fd00::1/129", "fd00:::1/64", "10.8.0.2/24,", ",10.8.0.2/24",
        "10.8.0.2/24, 10.8.0.2/24", "10.8.0.2/24; 10.8.0.3/24", "fe80::1%eth0/64", "host/24",
        "010.8.0.2/16", "10.8.0.2 /16",
    ],
    "ListenPort": ["", "-1", "65536", "0x1", "51820 51821", "1e3", "port", "99999999999", "٣"],
    "FwMark": ["", "0x", "0x1ffffffff", "4294967296", "-1", "on", "0xg"],
    "MTU": ["", "0", "575", "65536", "1400.5", "auto"],
    "Table": ["", "0", "-1", "4294967296", "on", "my table"],
    "Endpoint": [
        "", "vpn.example.org", "vpn.example.org:", ":51820", "vpn.example.org:0",
        "vpn.example.org:65536", "vpn.example.org:port", "1.2.3:51820", "1.2.3.400:51820",
        "fd00::1:51820", "[fd00::1]", "[fd00::1:51820", "[fd00:::1]:51820", "[1.2.3.4]:51820",
        "a b:51820", "-a.org:51820", "a..org:51820", "https://a.org:51820", f"{'a' * 64}:51820",
        "vpn.example.org:51820:1", "ä.org:51820", "a.org:+51820",
    ],
    "AllowedIPs": [
        "10.8.0.0/33", "10.8.0.0/16,,fd00::/64", "all", "10.8.0.0/16 10.9.0.0/16", "::/129",
        "10.8.0.0/16, 10.8.0.0/16", "10.8.1.0/16, 10.8.2.0/16", "*", "0.0.0.0/0.0.0.0",
    ],
    "PersistentKeepalive": ["", "-1", "65536", "on", "25s"],
}  # fmt: skip


def _broken_values() -> list[tuple[str, int, str]]:
    lines = GOOD.splitlines()
    found = []
    for key, values in BAD_VALUES.items():
        for value in values:
            number = LINE[key]
            text = "\n".join((*lines[: number - 1], f"{key} = {value}", *lines[number:]))
            found.append((text, number, key))
    return found


PEER = f"[Peer]\nPublicKey = {B}\n"
INTERFACE = f"[Interface]\nPrivateKey = {A}\n"
OTHERS = "AllowedIPs = 10.0.0.0/8\n"
BROKEN_FORMS = [  # text, line, word of the reason
    ("", 1, "no [Interface]"),
    ("\n\n# nothing\n", 1, "no [Interface]"),
    (PEER, 1, "no [Interface]"),
    (PEER + INTERFACE, 1, "no [Interface]"),
    ("[Interface]\n", 1, "no PrivateKey"),
    ("# a\n[Interface]\nAddress = 10.0.0.1/8\n" + PEER, 2, "no PrivateKey"),
    (INTERFACE + "[Peer]\nAllowedIPs = 10.0.0.0/8\n", 3, "no PublicKey"),
    (INTERFACE + PEER + "[Peer]\n", 5, "no PublicKey"),
    (INTERFACE + PEER + PEER, 5, "same PublicKey"),
    (INTERFACE + INTERFACE, 3, "second [Interface]"),
    (INTERFACE + PEER + INTERFACE, 5, "second [Interface]"),
    (f"PrivateKey = {A}\n" + INTERFACE, 1, "before any section"),
    (INTERFACE + f"PrivateKey = {A}\n", 3, "given twice"),
    (INTERFACE + f"privatekey={A}\n", 3, "given twice"),
    (INTERFACE + "MTU = 1400\nMTU = 1400\n", 4, "given twice"),
    (INTERFACE + "Address = 10.0.0.1/8\nAddress = 10.0.0.1/8\n", 4, "the same twice"),
    (INTERFACE + PEER + "Endpoint = a:1\nEndpoint = b:1\n", 6, "given twice"),
    (INTERFACE + PEER + f"PublicKey = {B}\n", 5, "given twice"),
    (INTERFACE + f"PublicKey = {B}\n", 3, "belongs under [Peer]"),
    (INTERFACE + PEER + "Address = 10.0.0.1/8\n", 5, "belongs under [Interface]"),
    (INTERFACE + PEER + f"PrivateKey = {A}\n", 5, "belongs under [Interface]"),
    (INTERFACE + "AllowedIPs = 10.0.0.0/8\n", 3, "belongs under [Peer]"),
    (INTERFACE + "[Peers]\n", 3, "no such section"),
    (INTERFACE + "[Peer\n", 3, "[Interface] or [Peer]"),
    (INTERFACE + "[]\n", 3, "[Interface] or [Peer]"),
    (INTERFACE + f"[Peer] PublicKey = {B}\n", 3, "[Interface] or [Peer]"),
    (INTERFACE + "Address 10.0.0.1/8\n", 3, "KEY = VALUE"),
    (INTERFACE + f"{A[:-1]}\n", 3, "KEY = VALUE"),
    (INTERFACE + f"{A}\n", 3, "no name of a key"),
    (INTERFACE + "= 10.0.0.1/8\n", 3, "no name of a key"),
    (INTERFACE + "9 = 10.0.0.1/8\n", 3, "no name of a key"),
    (INTERFACE + "List en = 1\n", 3, "no name of a key"),
    (INTERFACE + "MTU = 1400\0\n", 3, "control character"),
    (INTERFACE + "# \x1b[31m\n", 3, "control character"),
    (INTERFACE + "MTU = # 1400\n", 3, "no value"),
    (INTERFACE + PEER + f"{OTHERS}[Peer]\nPublicKey={C}\n{OTHERS}", 6, "one of these AllowedIPs"),
]  # fmt: skip
BROKEN = [*_broken_values(), *BROKEN_FORMS]
