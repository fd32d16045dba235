"""What the tunnel's interface should be, of a configuration and the machine. Pure.

Split by default: routes for the ranges of the other end stand among the machine's own, where a
longer one wins. A tunnel that would take the way to its own other end (0.0.0.0/0) has them in a
table of its own: only what the machine itself sends, and has not bound to an address, goes there;
its own networks, containers and answers to those who came by another way stay as they were.
"""

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from procs.vpn.conf import Conf, Endpoint, for_wg
from shared.egress import names

MTU = 1420  # of WireGuard's in Ethernet, IPv6 outside
OVERHEAD = 80
LEAST_MTU = 1280  # IPv6 has no less
FIRST_PRIORITY = 30_000  # before the machine's table main, after other programs' rules
RULES_EACH, MOST_ADDRESSES = 16, 12  # priorities of one worker; four are not of addresses
ANYWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}  # an address of nobody's
NUMBERS_FROM = 1_000_000_000  # of tables and marks: nobody else's


@dataclass(frozen=True)
class Own:
    """A worker's own names on its machine, so that two never meet."""

    name: str
    number: int  # of its routing table, and the mark of what carries the tunnel

    @property
    def rules(self) -> range:
        first = FIRST_PRIORITY + self.number % 150 * RULES_EACH
        return range(first, first + RULES_EACH)


def own(home: Path) -> Own:
    digits = names(home).digits
    return Own(f"wghm{digits}", NUMBERS_FROM + int(digits))


@dataclass(frozen=True)
class Route:
    network: str
    table: str


@dataclass(frozen=True)
class Rule:
    family: str  # -4 or -6
    priority: int
    words: tuple[str, ...]

    @property
    def source(self) -> str:
        """As ip shows it."""
        return self.words[1].partition("/")[0] if self.words[0] == "from" else "all"

    @property
    def mark(self) -> str | None:
        """As ip shows it."""
        return hex(int(self.words[1])) if self.words[0] == "fwmark" else None


@dataclass(frozen=True)
class Setup:
    """The interface as it should be; `rules_of`: the priorities that are this worker's."""

    name: str
    rules_of: range
    wg_text: str = field(default="", repr=False)
    addresses: tuple[str, ...] = ()
    mtu: int = MTU
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()


def nothing(mine: Own) -> Setup:
    return Setup(mine.name, mine.rules)


def setup(
    mine: Own, conf: Conf, places: Mapping[Endpoint, Endpoint], link_mtu: int | None
) -> Setup:
    """`places`: where the names of the other ends lead to."""
    apart = needs_table(conf, places)
    mark = mark_of(mine, conf, places)
    table = str(mine.number) if apart else "main"
    if conf.interface.table not in ("auto", "off"):
        table = conf.interface.table
    wanted = () if conf.interface.table == "off" else _networks(conf)
    return Setup(
        mine.name,
        mine.rules,
        for_wg(conf, places, mark),
        conf.interface.addresses,
        conf.interface.mtu or fitting(link_mtu),
        tuple(Route(network, table) for network in wanted),
        tuple(_rules(mine, conf, mark, table)) if apart else (),
    )


def fitting(link_mtu: int | None) -> int:
    """What goes through a link of that size."""
    return MTU if link_mtu is None else max(LEAST_MTU, min(MTU, link_mtu - OVERHEAD))


def needs_table(conf: Conf, places: Mapping[Endpoint, Endpoint]) -> bool:
    """Would its routes take the way to its own other end?"""
    if conf.interface.table != "auto":
        return False
    ranges = [ipaddress.ip_network(one) for peer in conf.peers for one in peer.allowed_ips]
    ends = [ipaddress.ip_address(host) for host, _ in places.values()]
    return any(one.prefixlen == 0 for one in ranges) or any(
        end in one for end in ends for one in ranges
    )


def mark_of(mine: Own, conf: Conf, places: Mapping[Endpoint, Endpoint]) -> int:
    """Of the packets that carry the tunnel; 0: none is needed."""
    return conf.interface.fwmark or (mine.number if needs_table(conf, places) else 0)


def _networks(conf: Conf) -> tuple[str, ...]:
    """Without those that the interface's addresses bring by themselves."""
    connected = {str(ipaddress.ip_interface(one).network) for one in conf.interface.addresses}
    wanted = (one for peer in conf.peers for one in peer.allowed_ips)
    return tuple(one for one in wanted if one not in connected)


def _rules(mine: Own, conf: Conf, mark: int, table: str) -> Iterator[Rule]:
    for family, anywhere in (("-4", "0.0.0.0/32"), ("-6", "::/128")):
        of_family = (a for a in conf.interface.addresses if (":" in a) == (":" in anywhere))
        own_addresses = [_bare(address) for address in of_family]
        if not own_addresses:
            continue
        wanted = [
            ("fwmark", str(mark), "lookup", "main"),
            ("fwmark", str(mark), "unreachable"),  # or the tunnel would carry itself
            ("lookup", "main", "suppress_prefixlength", "0"),  # all but the way to everywhere
            ("from", anywhere, "iif", "lo", "lookup", table),  # not bound, and our own
            *(("from", address, "lookup", table) for address in own_addresses[:MOST_ADDRESSES]),
        ]
        for priority, words in zip(mine.rules, wanted, strict=False):
            yield Rule(family, priority, words)


def probed(conf: Conf) -> tuple[str, ...]:
    """An address behind each other end, that of the other end itself where one can tell."""
    own_addresses = {_bare(address) for address in conf.interface.addresses}
    found = (_first(peer.allowed_ips, own_addresses) for peer in conf.peers)
    return tuple(address for address in found if address)


def _first(ranges: tuple[str, ...], own_addresses: set[str]) -> str:
    for one in ranges:
        network = ipaddress.ip_network(one)
        first = network.network_address + (1 if network.num_addresses > 2 else 0)
        if network.prefixlen == 0:
            first = ipaddress.ip_address(ANYWHERE[network.version])
        for address in (first, first + 1):
            if str(address) not in own_addresses and address in network:
                return str(address)
    return ""


def _bare(address: str) -> str:
    return address.partition("/")[0]


# ------------------------------------------------------------------ the address


def derived_address(node_id: str, ranges: tuple[str, ...]) -> str:
    """Of a master that assigns none: the same for a node always, and in the VPN's range. Its
    first address is the master's."""
    for one in ranges:
        network = ipaddress.ip_network(one, strict=False)
        if network.prefixlen > 0 and network.num_addresses >= 4:
            digest = int.from_bytes(hashlib.sha256(node_id.encode()).digest())
            host = 2 + digest % (network.num_addresses - 3)
            return f"{network.network_address + host}/{network.max_prefixlen}"
    return ""
