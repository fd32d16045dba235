"""The firewall of task networks as nftables' text, and what must be known of the host for it.

A table of our own, in front of Docker's and the owner's: a packet that it drops is dropped,
whatever iptables says, and `iptables -F`, a restart of Docker or firewalld don't touch it. What
it accepts, the others still judge. Bridges are matched by the beginning of their names: the
rules are there before a bridge is. Pure: no clock, no sockets, no commands.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shared.egress import ANY_BRIDGE, Names

BEFORE_OTHERS = -10  # Docker's, firewalld's and the owner's own filters are at 0 and later
FALLBACK_RESOLVERS = ("1.1.1.1", "9.9.9.9")  # where the host has none that a container reaches
MOST_RESOLVERS = 3  # a C library asks no more
CLOSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # carriers' NAT, and overlay networks
    "127.0.0.0/8",
    "168.63.129.16/32",  # Azure's own, as public as it looks: a machine's secrets on port 80
    "169.254.0.0/16",  # link-local: clouds tell a machine's secrets at 169.254.169.254
    "172.16.0.0/12",  # Docker's networks, other tasks'
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",  # with 255.255.255.255
)
NEW_FLOWS = "100/second burst 1000 packets"  # past its part, a look at one takes a millisecond
MOST_FLOWS, SMALL_TABLE = 8192, 65536
FLOWS_PART = 32  # twenty bridges leave the owner a third of the kernel's table
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # what is no such name is no interface either
TUNNELS = "wg*"  # of WireGuard, by the name that everyone gives them


@dataclass(frozen=True)
class Host:
    """What the rules must know of this host at this moment."""

    resolvers: tuple[str, ...]
    direct: tuple[str, ...] = ()  # its own addresses and the networks that it is connected to
    tunnel: str = ""  # the interface of our own tunnel
    index: tuple[tuple[str, int], ...] = ()  # (address, port) of the owner's package index, proxy
    most_flows: int = MOST_FLOWS  # of one bridge at once


def rules(names: Names, host: Host) -> str:
    """What `nft -f` takes: replaces the table, or makes it, in one step. No range is in a set: the
    kernel finds nothing in one while it is replaced, and packets get out."""
    return "\n".join(_lines(names, host)) + "\n"


def _lines(names: Names, host: Host) -> Iterator[str]:
    table = f"table inet {names.table}"
    yield from (f"{table} {{", "}", f"delete {table}", f"{table} {{")
    yield from _chain("resolver_hole", _resolvers(host))
    yield from _chain("index_hole", _index(host))
    yield from _chain("input", (
        f"type filter hook input priority {BEFORE_OTHERS}; policy accept;",
        f'iifname "{names.task}*" goto to_host',
        f'iifname "{names.install}*" jump index_hole',
        f'iifname "{names.install}*" goto to_host',
    ))  # fmt: skip
    yield from _chain("forward", (
        f"type filter hook forward priority {BEFORE_OTHERS}; policy accept;",
        f'iifname "{names.task}*" goto outward',
        f'iifname "{names.install}*" jump index_hole',
        f'iifname "{names.install}*" goto outward',
        f'oifname "{names.task}*" goto inward',
        f'oifname "{names.install}*" goto inward',
    ))  # fmt: skip
    yield from _chain("to_host", ("jump resolver_hole", "drop"))
    yield from _chain("outward", _outward(host))
    yield from _chain("inward", ("ct state established,related accept", "drop"))
    yield from _bounds(names, host)
    yield "}"


def _chain(name: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"  chain {name} {{"
    yield from (f"    {line}" for line in lines)
    yield "  }"


def _bounds(names: Names, host: Host) -> Iterator[str]:
    """For what is let through: each bridge has its part of the connections that the kernel can
    follow. One task with all of them would leave the host without a network."""
    for hook in ("input", "forward"):
        yield from _chain(f"bounds_{hook}", (
            f"type filter hook {hook} priority {BEFORE_OTHERS + 1}; policy accept;",
            f'iifname "{names.task}*" goto bounds',
            f'iifname "{names.install}*" goto bounds',
        ))  # fmt: skip
    for name in ("new_flows", "flows"):
        yield from (f"  set {name} {{", "    type ifname; size 128; flags dynamic", "  }")
    new = "ct status & confirmed == 0"
    yield from _chain("bounds", (
        f"{new} add @new_flows {{ iifname limit rate over {NEW_FLOWS} }} drop",
        f"{new} add @flows {{ iifname ct count over {host.most_flows} }} drop",
    ))  # fmt: skip


def _merged(networks: Iterable[str]) -> list[str]:
    """Without overlaps: not every nft merges them itself."""
    found = ipaddress.collapse_addresses(ipaddress.IPv4Network(one) for one in networks)
    return [str(network) for network in found]


def _resolvers(host: Host) -> Iterator[str]:
    if host.resolvers:
        addresses = ", ".join(host.resolvers)
        yield f"ip daddr {{ {addresses} }} meta l4proto {{ tcp, udp }} th dport 53 accept"


def _index(host: Host) -> Iterator[str]:
    for address, port in host.index:
        yield f"ip daddr {address} tcp dport {port} accept"


def _outward(host: Host) -> Iterator[str]:
    yield "meta nfproto != ipv4 drop"
    yield "jump resolver_hole"
    yield from (f"ip daddr {network} drop" for network in _merged((*CLOSED, *host.direct)))
    yield f'oifname "{ANY_BRIDGE}*" drop'
    yield f'oifname "{TUNNELS}" drop'
    if INTERFACE.fullmatch(host.tunnel):
        yield f'oifname "{host.tunnel}" drop'


# ------------------------------------------------------------------ what the host says


def direct(routes: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Its own addresses and what it reaches without a gateway, of `ip -j -4 route show table all`.
    Whatever range a LAN has, it is a LAN."""
    found = {
        route["dst"]
        for route in routes
        if route.get("type", "unicast") in ("unicast", "local", "broadcast")
        and not {"gateway", "via", "nexthops"} & route.keys()
        and route["dst"] not in ("default", "0.0.0.0/0")
        and not str(route.get("dev", "")).startswith(ANY_BRIDGE)
    }
    return tuple(_merged(found))


def most_flows(table: str) -> int:
    """A bridge's part of the connections that the kernel can follow, as its sysctl has it."""
    return min(MOST_FLOWS, int(table or SMALL_TABLE) // FLOWS_PART)


def resolvers(chosen: tuple[str, ...], resolv_conf: str, systemd: str) -> tuple[str, ...]:
    """Those that tasks are given: the owner's choice, else the host's, where one that only the
    host reaches stands for systemd's own; IPv6 is closed to tasks."""
    found = chosen or tuple(_nameservers(resolv_conf))
    if any(_only_here(address) for address in found):
        found = (*found, *_nameservers(systemd))
    usable = tuple(dict.fromkeys(a for a in found if not _only_here(a)))
    return usable[:MOST_RESOLVERS] or FALLBACK_RESOLVERS


def endpoints(indexes: str, proxy: str) -> tuple[tuple[str, int], ...]:
    """(host, port) of each package index and of the proxy, as pip reads these settings."""
    urls = [*indexes.split(), *([proxy if "://" in proxy else f"http://{proxy}"] if proxy else [])]
    return tuple(dict.fromkeys(found for url in urls if (found := _endpoint(url))))


def _endpoint(url: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:  # pip will say it
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def _nameservers(text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                yield str(ipaddress.IPv4Address(words[1]))
            except ValueError:
                continue


def _only_here(address: str) -> bool:
    parsed = ipaddress.IPv4Address(address)
    return parsed.is_loopback or parsed.is_unspecified
