"""Network namespaces for the firewall's tests: a host with task bridges, and all around it.

    task, neighbour, install ──bridges── host ──eth0, wg7, hmtun── router: LAN, VPN, internet

Sockets are made in a namespace by a thread that enters it; the tests' process stays outside.
"""

import ctypes
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from shared.egress import Names, bridge

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
OPEN_S = 10.0  # what is open answers in a millisecond; a loaded machine takes longer
CLOSED_S = 0.4  # nothing comes back from what is closed
INTERNET, RESOLVER, METADATA = "203.0.113.10", "10.255.255.53", "169.254.169.254"
SPECIAL = (
    "0.1.2.3",
    "100.100.100.200",  # Alibaba's metadata
    "168.63.129.16",  # Azure's WireServer, which tells a machine's secrets too
    "172.16.0.1",
    "192.0.0.192",  # Oracle's metadata
    "198.18.0.1",
    "240.0.0.1",
)
OF_ROUTER = (
    INTERNET, RESOLVER, METADATA, *SPECIAL,
    "192.0.2.9",  # public to look at, and behind the tunnel wg7
    "192.0.3.9",  # the same, behind hmtun
)  # fmt: skip
LAN_HOST, LAN_NEIGHBOUR = "192.168.77.2", "192.168.77.1"
DIRECT_HOST, DIRECT_NEIGHBOUR = "198.51.100.2", "198.51.100.1"  # a LAN with public addresses
VPN_PEER = "10.8.0.1"
INTERNET6 = "2001:db8::10"
# Tasks' own are no private ranges here: that those are closed must not hide what else is.
SUBNETS = {"task": "203.0.114", "neighbour": "203.0.115", "install": "172.30.2"}  # .1 is the host's


class Wires:
    """`spaces`: role → the namespace's name. `host`: one that is there already, and stays."""

    def __init__(self, names: Names, host: str = "") -> None:
        self.made = ["router"] if host else ["host", "router", *SUBNETS]
        self.spaces = {role: f"hmt{os.getpid()}-{role}" for role in self.made}
        self.spaces.setdefault("host", host)
        self.bridges = {
            "task": bridge(names.task, 0),
            "neighbour": bridge(names.task, 1),
            "install": bridge(names.install, 0),
        }

    def run(self, space: str, *command: str, text: str | None = None) -> str:
        done = subprocess.run(
            ("nsenter", f"--net=/run/netns/{self.spaces[space]}", *command),
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def inside(self, space: str, call: Callable[[], T]) -> T:
        """`call()` by a thread in the namespace."""
        found: list[T] = []

        def enter() -> None:
            with Path(f"/run/netns/{self.spaces[space]}").open("rb") as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0
            found.append(call())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return found[0]

    def build(self) -> None:
        for role in self.made:
            subprocess.run(("ip", "netns", "add", self.spaces[role]), check=True)
            self.run(role, "sh", "-ec", SPACE)
        self.run("host", "sh", "-ec", HOST.format(router=f"/run/netns/{self.spaces['router']}"))
        self.run("router", "sh", "-ec", ROUTER + self._router_addresses())
        self.run("host", "sh", "-ec", HOST_ROUTES)
        for role in SUBNETS.keys() & self.made:
            self._build_task(role)

    def _build_task(self, role: str) -> None:
        subnet = SUBNETS[role]
        net = {"bridge": self.bridges[role], "veth": f"v-{role}", "subnet": subnet}
        net["space"] = f"/run/netns/{self.spaces[role]}"
        net["six"] = f"fd30:{subnet.rpartition('.')[2]}"
        self.run("host", "sh", "-ec", BRIDGE.format(**net))
        self.run(role, "sh", "-ec", TASK.format(**net))
        self.run("router", "ip", "route", "add", f"{subnet}.0/24", "via", LAN_HOST)
        self.run("router", "ip", "route", "add", f"{net['six']}::/64", "via", "fd77::2")

    @staticmethod
    def _router_addresses() -> str:
        return "".join(f"ip addr add {address}/32 dev lo\n" for address in OF_ROUTER)

    def remove(self) -> None:
        for role in self.made:
            gone = ("ip", "netns", "del", self.spaces[role])
            subprocess.run(gone, check=False, capture_output=True)


SPACE = """
ip link set lo up
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
"""
HOST = """
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
ip link add eth0 type veth peer name eth0 netns {router}
ip link add wg7 type veth peer name wg7 netns {router}
ip link add hmtun type veth peer name hmtun netns {router}
ip addr add 192.168.77.2/24 dev eth0
ip addr add 198.51.100.2/24 dev eth0
ip addr add fd77::2/64 dev eth0 nodad
ip addr add 10.8.0.2/16 dev wg7
ip addr add 10.9.0.2/16 dev hmtun
ip link set eth0 up
ip link set wg7 up
ip link set hmtun up
"""
ROUTER = """
ip addr add 192.168.77.1/24 dev eth0
ip addr add 198.51.100.1/24 dev eth0
ip addr add fd77::1/64 dev eth0 nodad
ip addr add 2001:db8::10/128 dev lo nodad
ip addr add 10.8.0.1/16 dev wg7
ip addr add 10.9.0.1/16 dev hmtun
ip link set eth0 up
ip link set wg7 up
ip link set hmtun up
"""
HOST_ROUTES = """
ip route add default via 192.168.77.1
ip route add 192.0.2.0/24 via 10.8.0.1
ip route add 192.0.3.0/24 via 10.9.0.1
ip -6 route add default via fd77::1
"""
BRIDGE = """
ip link add {bridge} type bridge
ip addr add {subnet}.1/24 dev {bridge}
ip addr add {six}::1/64 dev {bridge} nodad
ip addr add fe80::1/64 dev {bridge} nodad
ip link set {bridge} up
ip link add {veth} type veth peer name eth0 netns {space}
ip link set {veth} master {bridge} up
"""
TASK = """
ip addr add {subnet}.2/24 dev eth0
ip addr add {six}::2/64 dev eth0 nodad
ip link set eth0 up
ip route add default via {subnet}.1
ip -6 route add default via {six}::1
"""


@contextmanager
def wires(names: Names, host: str = "") -> Iterator[Wires]:
    made = Wires(names, host)
    try:
        made.build()
        yield made
    finally:
        made.remove()


# ------------------------------------------------------------------ who listens, who asks


@dataclass(frozen=True)
class Probe:
    """Someone in `space` asks for an answer."""

    space: str
    kind: str  # tcp, udp
    address: str
    port: int
    source: str = ""

    def __str__(self) -> str:
        return f"{self.space} to {self.kind} {self.address}:{self.port}"


def answered(
    wires: Wires,
    probes: Iterable[Probe],
    wait_s: float,
    enough: Callable[[set[Probe]], bool] = lambda heard: False,
) -> set[Probe]:
    """Those that got their answer within the time, or until they are `enough`."""
    with ExitStack() as stack:
        asking = {}
        for probe in probes:
            asked = wires.inside(probe.space, partial(_ask, probe))
            asking[stack.enter_context(asked)] = probe
        heard: set[Probe] = set()
        deadline_s = time.monotonic() + wait_s
        while asking and not enough(heard) and (left_s := deadline_s - time.monotonic()) > 0:
            for one in select.select([*asking], [], [], left_s)[0]:
                probe = asking.pop(one)
                heard |= {probe} if _is_answer(one) else set()
        return heard


def _ask(probe: Probe) -> socket.socket:
    family = socket.AF_INET6 if ":" in probe.address else socket.AF_INET
    kind = socket.SOCK_STREAM if probe.kind == "tcp" else socket.SOCK_DGRAM
    asking = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    if probe.kind == "udp":
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if probe.source:
        asking.bind((probe.source, 0))
    target = socket.getaddrinfo(probe.address, probe.port, family)[0][4]
    try:
        if probe.kind == "tcp":
            asking.connect(target)
        else:
            asking.sendto(b"?", target)
    except OSError:  # in progress; or no route, and nothing will come
        pass
    return asking


def _is_answer(asking: socket.socket) -> bool:
    try:
        return asking.recv(1) == b"!"
    except OSError:
        return False


@contextmanager
def listening(
    wires: Wires, space: str, tcp: tuple[int, ...], udp: tuple[int, ...]
) -> Iterator[None]:
    """Answers on all addresses of the namespace, IPv6 too."""
    wanted = [(port, True) for port in tcp] + [(port, False) for port in udp]
    with ExitStack() as stack:
        for port, is_tcp in wanted:
            made = wires.inside(space, partial(_listener, port, tcp=is_tcp))
            stack.enter_context(_answering(made))
        yield


def _listener(port: int, *, tcp: bool) -> socket.socket:
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    if tcp:
        made.listen()
    return made


@contextmanager
def _answering(listener: socket.socket) -> Iterator[None]:
    stop, stopped = socket.socketpair()
    thread = threading.Thread(target=_answer, args=(listener, stopped))
    thread.start()
    try:
        yield
    finally:
        stop.close()
        thread.join()
        listener.close()
        stopped.close()


def _answer(listener: socket.socket, stopped: socket.socket) -> None:
    while stopped not in (ready := select.select([listener, stopped], [], [])[0]):
        assert ready == [listener]
        if listener.type == socket.SOCK_STREAM:
            with listener.accept()[0] as one:
                one.sendall(b"!")
        else:
            _answer_datagram(listener)


def _answer_datagram(listener: socket.socket) -> None:
    """From the address that was asked, as a resolver does."""
    _, about, _, source = listener.recvmsg(1, 64)
    try:
        listener.sendmsg([b"!"], about, 0, source)
    except OSError:  # a broadcast address is nobody's
        listener.sendto(b"!", source)
