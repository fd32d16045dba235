"""The rules in a kernel: who reaches whom through them, and that no line of them is idle."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network

import pytest

from procs.vpn.firewall import CLOSED as RANGES
from procs.vpn.firewall import FALLBACK_RESOLVERS, Host, direct, most_flows, resolvers, rules
from shared.egress import Names
from tests.vpn.wires import (
    CLOSED_S,
    DIRECT_HOST,
    DIRECT_NEIGHBOUR,
    INTERNET,
    INTERNET6,
    LAN_HOST,
    LAN_NEIGHBOUR,
    METADATA,
    OPEN_S,
    RESOLVER,
    SPECIAL,
    VPN_PEER,
    Probe,
    Wires,
    answered,
    listening,
    wires,
)  # fmt: skip

NAMES = Names("123456")
HOST = Host(
    resolvers=(RESOLVER, LAN_HOST),
    direct=("192.168.77.0/24", "198.51.100.0/24"),
    tunnel="hmtun",
    index=((LAN_NEIGHBOUR, 8081), (LAN_HOST, 8081)),
)
OPEN = (
    Probe("task", "tcp", INTERNET, 80),
    Probe("task", "udp", RESOLVER, 53),
    Probe("task", "tcp", RESOLVER, 53),
    Probe("task", "udp", LAN_HOST, 53),
    Probe("install", "tcp", INTERNET, 80),
    Probe("install", "udp", RESOLVER, 53),
    Probe("install", "udp", LAN_HOST, 53),
    Probe("install", "tcp", LAN_NEIGHBOUR, 8081),
    Probe("install", "tcp", LAN_HOST, 8081),
)
CLOSED = (
    Probe("task", "tcp", "203.0.114.1", 80),
    Probe("task", "udp", "203.0.114.1", 53),
    Probe("task", "udp", "255.255.255.255", 67),
    Probe("task", "tcp", LAN_HOST, 80),
    Probe("task", "tcp", LAN_HOST, 8081),
    Probe("task", "tcp", DIRECT_HOST, 80),
    Probe("task", "tcp", LAN_NEIGHBOUR, 80),
    Probe("task", "tcp", LAN_NEIGHBOUR, 8081),
    Probe("task", "tcp", DIRECT_NEIGHBOUR, 80),
    *(Probe("task", "tcp", address, 80) for address in (METADATA, *SPECIAL)),
    Probe("task", "tcp", RESOLVER, 80),
    Probe("task", "tcp", VPN_PEER, 80),
    Probe("task", "tcp", "192.0.2.9", 80),
    Probe("task", "tcp", "192.0.3.9", 80),
    Probe("task", "tcp", "203.0.115.2", 80),
    Probe("task", "tcp", "fe80::1%eth0", 80),
    Probe("task", "tcp", "fd30:114::1", 80),
    Probe("task", "tcp", "fd77::1", 80),
    Probe("task", "tcp", INTERNET6, 80),
    Probe("install", "tcp", "172.30.2.1", 80),
    Probe("install", "tcp", LAN_NEIGHBOUR, 80),
    Probe("router", "tcp", "203.0.114.2", 80),
    Probe("router", "tcp", "203.0.114.2", 80, INTERNET),
    Probe("router", "tcp", "172.30.2.2", 80, INTERNET),
    Probe("router", "tcp", "fd30:114::2", 80),
)
TEXT = rules(NAMES, HOST)


@pytest.fixture(scope="module")
def world() -> Iterator[Wires]:
    with wires(NAMES) as made, ExitStack() as stack:
        stack.enter_context(listening(made, "host", (80, 8081), (53, 67)))
        stack.enter_context(listening(made, "router", (53, 80, 8081), (53,)))
        for space in ("task", "neighbour", "install"):
            stack.enter_context(listening(made, space, (80,), ()))
        yield made


def put(world: Wires, text: str) -> None:
    world.run("host", "nft", "-f", "-", text=text)


def test_without_the_rules_all_of_it_is_open(world: Wires) -> None:
    put(world, "flush ruleset")
    assert answered(world, (*OPEN, *CLOSED), OPEN_S) == {*OPEN, *CLOSED}


def test_with_them_only_what_should_be(world: Wires) -> None:
    put(world, TEXT)
    assert answered(world, OPEN, OPEN_S) == {*OPEN}
    assert answered(world, CLOSED, CLOSED_S) == set()


ACCEPT_ALL = """
table inet somebody {
  chain input { type filter hook input priority -300; policy accept; accept; }
  chain forward { type filter hook forward priority 300; policy accept; accept; }
}
"""


def test_what_others_accept_opens_nothing_and_what_they_flush_is_not_ours(world: Wires) -> None:
    put(world, "flush ruleset" + ACCEPT_ALL + TEXT)
    for chain in ("INPUT", "FORWARD"):
        world.run("host", "iptables", "-w", "-I", chain, "-j", "ACCEPT")
    assert answered(world, CLOSED, CLOSED_S) == set()
    world.run("host", "iptables", "-w", "-F")
    world.run("host", "nft", "flush", "table", "inet", "somebody")
    assert answered(world, CLOSED, CLOSED_S) == set()
    assert answered(world, OPEN, OPEN_S) == {*OPEN}


def flooding(world: Wires, stop: threading.Event) -> None:
    """The task sends to what is closed as fast as it can."""
    with world.inside("task", udp) as sending:
        while not stop.is_set():
            with suppress(OSError):  # its queue is full
                sending.sendto(b"?", (METADATA, 9))


def udp(address: str = "") -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.bind((address, 9 if address else 0))
    return made


def test_not_one_packet_gets_out_while_the_rules_are_replaced(world: Wires) -> None:
    other = rules(NAMES, replace(HOST, direct=("11.0.0.0/8",)))
    put(world, "flush ruleset\n" + TEXT)
    stop = threading.Event()
    with world.inside("router", partial(udp, METADATA)) as escaped, ThreadPoolExecutor(1) as thread:
        thread.submit(flooding, world, stop)
        for text in 40 * (other, TEXT):
            put(world, text)
        stop.set()
        with pytest.raises(BlockingIOError):
            escaped.recv(1)


def lines_with(*words: str) -> list[int]:
    return [n for n, line in enumerate(TEXT.splitlines()) if set(words) & set(line.split())]


def without(number: int, text: str = TEXT) -> str:
    lines = text.splitlines()
    return "\n".join(lines[:number] + lines[number + 1 :]) + "\n"


def shown(number: int) -> str:
    return TEXT.splitlines()[number].strip()


def closing() -> list[int]:
    """But those that bound how much, and that to 127/8, which no task's own kernel lets out."""
    numbers = lines_with("drop", "goto")
    others = {*bounding(), pacing()}
    return [n for n in numbers if n not in others and " 127." not in shown(n)]


def bounding() -> list[int]:
    return [n for n in lines_with("bounds", "@flows") if "chain" not in shown(n)]


def pacing() -> int:
    return lines_with("@new_flows")[0]


@pytest.mark.parametrize("number", closing(), ids=shown)
def test_without_any_line_that_closes_something_is_open(world: Wires, number: int) -> None:
    put(world, without(number))
    assert answered(world, CLOSED, OPEN_S, enough=bool)


@pytest.mark.parametrize("number", lines_with("accept", "jump"), ids=shown)
def test_without_any_line_that_opens_something_is_closed(world: Wires, number: int) -> None:
    put(world, without(number))
    assert answered(world, OPEN, CLOSED_S) != {*OPEN}


# ------------------------------------------------------------------ how much

FEW = rules(NAMES, replace(HOST, most_flows=100))
FLOODS = [(space, target) for space in ("task", "install") for target in (INTERNET, LAN_HOST)]


def flood(address: str, count: int) -> None:
    """Packets, each a flow of its own that the host's kernel has to follow."""
    for _ in range(count):
        with udp() as sending:
            sending.sendto(b"?", (address, 53))


def followed(world: Wires, space: str, address: str, count: int) -> int:
    """How many of the flood's flows the host follows."""
    place = "/proc/sys/net/netfilter/nf_conntrack_count"
    before = int(world.run("host", "cat", place))
    world.inside(space, partial(flood, address, count))
    return int(world.run("host", "cat", place)) - before


@pytest.mark.parametrize(("space", "address"), FLOODS)
def test_who_has_its_part_of_the_flows_has_no_more(
    world: Wires, space: str, address: str
) -> None:
    put(world, FEW)
    assert 80 < followed(world, space, address, 300) < 120
    other = {"task": "install", "install": "task"}[space]
    assert answered(world, [Probe(other, "tcp", INTERNET, 80)], OPEN_S), "another has its own"


@pytest.mark.parametrize("number", bounding(), ids=shown)
def test_without_any_line_that_bounds_it_somebody_has_more(world: Wires, number: int) -> None:
    put(world, without(number, FEW))
    assert any(followed(world, *one, 300) > 250 for one in FLOODS)


def test_nor_are_they_begun_faster_than_they_can_be_counted(world: Wires) -> None:
    put(world, TEXT)
    assert followed(world, "task", INTERNET, 5000) < 3000
    put(world, without(pacing()))
    assert followed(world, "task", INTERNET, 5000) > 4000


# ------------------------------------------------------------------ what the host says

UPLINK = {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0", "flags": []}
DIALLED = {"dst": "default", "dev": "ppp0", "scope": "link"}
LAN = {"dst": "192.0.2.0/24", "dev": "eth0", "scope": "link", "prefsrc": "192.0.2.2"}
OWN = {"type": "local", "dst": "192.0.2.2", "dev": "eth0", "table": "local"}


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        pytest.param([UPLINK, LAN, OWN], ("192.0.2.0/24",), id="a LAN, whatever its range"),
        pytest.param([DIALLED, OWN], ("192.0.2.2/32",), id="the way to the internet is no LAN"),
        pytest.param([LAN | {"gateway": "192.0.2.1"}], (), id="beyond a gateway"),
        pytest.param([LAN | {"via": {"host": "fe80::1"}}], (), id="beyond one of IPv6"),
        pytest.param([LAN | {"nexthops": []}], (), id="beyond several"),
        pytest.param([LAN | {"type": "blackhole"}], (), id="nowhere"),
        pytest.param([LAN | {"dev": "hm-eg12345600"}], (), id="a task's bridge: by its name"),
        pytest.param([LAN | {"table": "51820", "dev": "wg0"}], ("192.0.2.0/24",), id="a tunnel's"),
    ],
)
def test_what_the_host_is_connected_to(
    routes: list[dict[str, object]], found: tuple[str, ...]
) -> None:
    assert direct(routes) == found


@pytest.mark.parametrize(
    ("chosen", "etc", "systemd", "found"),
    [
        pytest.param(("8.8.8.8",), "nameserver 10.0.0.1", "", ("8.8.8.8",), id="the owner's"),
        pytest.param(
            (), "# x\nsearch a\nnameserver 10.0.0.1\nnameserver  10.0.0.2 # y", "",
            ("10.0.0.1", "10.0.0.2"), id="the host's",
        ),
        pytest.param(
            (), "nameserver 127.0.0.53", "nameserver 192.168.1.1\nnameserver fe80::1%2",
            ("192.168.1.1",), id="systemd's stub",
        ),
        pytest.param(
            (), "nameserver 127.0.0.1\nnameserver 9.9.9.9", "", ("9.9.9.9",), id="one of two"
        ),
        pytest.param((), "nameserver ::1\nnameserver 0.0.0.0", "", FALLBACK_RESOLVERS, id="none"),
        pytest.param((), "nameserver\nnameserver x", "", FALLBACK_RESOLVERS, id="garbage"),
        pytest.param(
            (), "nameserver 9.9.9.9\nnameserver 9.9.9.9", "", ("9.9.9.9",), id="one twice"
        ),
        pytest.param(
            ("8.0.0.1", "8.0.0.2", "8.0.0.3", "8.0.0.4"), "", "",
            ("8.0.0.1", "8.0.0.2", "8.0.0.3"), id="more than anyone asks",
        ),
    ],
)  # fmt: skip
def test_the_resolvers_that_tasks_are_given(
    chosen: tuple[str, ...], etc: str, systemd: str, found: tuple[str, ...]
) -> None:
    assert resolvers(chosen, etc, systemd) == found


def closed_in(text: str) -> list[IPv4Network]:
    return [IPv4Network(one) for one in re.findall(r"ip daddr (\S+) drop", text)]


@pytest.mark.parametrize(
    ("followed", "part"), [("262144\n", 8192), ("65536\n", 2048), ("9999999\n", 8192), ("", 2048)]
)
def test_a_bridges_part_of_what_the_kernel_can_follow(followed: str, part: int) -> None:
    assert most_flows(followed) == part


@pytest.mark.parametrize("network", [*RANGES, *HOST.direct, "255.255.255.255/32"])
def test_every_closed_range_is_in_the_rules(network: str) -> None:
    assert any(IPv4Network(network).subnet_of(one) for one in closed_in(TEXT))


@pytest.mark.parametrize("documented", ["192.0.2.0/24", "203.0.113.0/24", "1.1.1.1/32"])
def test_what_is_not_near_is_in_none(documented: str) -> None:
    assert not any(IPv4Network(documented).overlaps(one) for one in closed_in(TEXT))


@pytest.mark.parametrize("name", ["", "my tunnel", 'x"; flush ruleset; #', "sixteen-letters-x"])
def test_a_tunnel_that_no_interface_can_be_is_in_no_rule(name: str) -> None:
    assert rules(NAMES, replace(HOST, tunnel=name)) == rules(NAMES, replace(HOST, tunnel=""))
