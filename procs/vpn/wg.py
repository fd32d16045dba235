"""The edges to WireGuard: an interface made, set, looked at and removed by calls of ip and wg.

The kernel's WireGuard where it is there, else wireguard-go: a daemon in a session of its own
without output, which outlives this process. All of it blocks: never in the loop. Keys travel on
pipes and sockets alone.
"""

import contextlib
import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procs.vpn.command import COMMAND_S, CommandError, find, run
from procs.vpn.conf import Endpoint
from procs.vpn.tunnel import Route, Rule, Setup

SOCKETS = Path("/var/run/wireguard")  # of wireguard-go, whatever the network namespace
TUN = Path("/dev/net/tun")
UAPI_S = 2.0
NO_KERNEL = ("Unknown device type", "Operation not supported", "not supported")
DISCARD_PORT = 9


class TunnelError(Exception):
    """The tunnel can't be brought up or seen; the text says why and what to do."""


@dataclass(frozen=True)
class Look:
    """The interface as it is: its newest handshake (0: none), and all that its peers sent."""

    handshake_unix_s: float = 0.0
    received_bytes: int = 0


# ------------------------------------------------------------------ keys


def make_key() -> str:
    return _run("wg", "genkey").strip()


def public_key(private_key: str) -> str:
    return _run("wg", "pubkey", text=f"{private_key}\n").strip()


# ------------------------------------------------------------------ the interface


def exists(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def ensure(setup: Setup, *, new_key: bool) -> None:
    """As `setup` says when it returns, whatever was there; nothing that is right is touched.

    `new_key`: no session outlives it; a peer made anew shakes hands at once, not 5 s later.
    """
    text = setup.wg_text
    if exists(setup.name):
        text = _with_port(text, _run("wg", "show", setup.name, "listen-port").strip())
    else:
        _run("wg", "--version")  # it is there: before anything is made
        _create(setup.name)
    # With syncconf what stays the same loses no packet.
    way = "setconf" if new_key else "syncconf"
    _run("wg", way, setup.name, "/dev/stdin", text=text)
    _ensure_link(setup)
    _ensure_routes(setup)
    _ensure_rules(setup.rules, setup.rules_of)


def _with_port(text: str, port: str) -> str:
    """The one that it has, where none is asked for: wg would take another, and what is on its way
    to the old one would be lost."""
    if "ListenPort" in text:
        return text
    return text.replace("[Interface]\n", f"[Interface]\nListenPort = {port}\n", 1)


def remove(setup: Setup) -> None:
    """The interface goes, and its routes with it; then the daemon ends by itself."""
    _ensure_rules((), setup.rules_of)
    if exists(setup.name):
        _run("ip", "link", "del", "dev", setup.name)
    _socket_of(setup.name).unlink(missing_ok=True)


def _create(name: str) -> None:
    try:
        run("ip", "link", "add", "dev", name, "type", "wireguard")
    except CommandError as err:
        if not any(words in str(err) for words in NO_KERNEL):
            raise TunnelError(str(err)) from err
        _start_daemon(name)


def _start_daemon(name: str) -> None:
    """It has made the interface when its first process ends."""
    try:
        path = find("wireguard-go")
    except CommandError as err:
        raise TunnelError(f"this kernel has no WireGuard, and {err}") from err
    _check_tun()
    with contextlib.suppress(OSError):  # of a daemon that was killed
        _socket_of(name).unlink(missing_ok=True)
    try:
        done = subprocess.run(
            (path, name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # else it would die with our process group
            cwd="/",
            env={"LOG_LEVEL": "silent", "PATH": os.environ.get("PATH", os.defpath)},
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise TunnelError(f"wireguard-go could not be run: {type(err).__name__}") from err
    if done.returncode or not exists(name):
        raise TunnelError(
            f"wireguard-go ends at once: it needs CAP_NET_ADMIN and a writable {SOCKETS}"
        )


def _check_tun() -> None:
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        raise TunnelError(
            f"{TUN} can't be used ({err.strerror}), and this kernel has no WireGuard:"
            " load the module wireguard or tun, or give the container that device"
        ) from err


def _ensure_link(setup: Setup) -> None:
    link = _json("ip", "-json", "addr", "show", "dev", setup.name)[0]
    has = {
        f"{one['local']}/{one['prefixlen']}"
        for one in link["addr_info"]
        if one.get("scope") == "global"
    }
    for address in sorted(has - {*setup.addresses}):
        _run("ip", "addr", "del", address, "dev", setup.name)
    for address in setup.addresses:
        if address not in has:
            _run("ip", "addr", "add", address, "dev", setup.name)
    if link["mtu"] != setup.mtu or "UP" not in link["flags"]:
        _run("ip", "link", "set", "mtu", str(setup.mtu), "up", "dev", setup.name)


def _ensure_routes(setup: Setup) -> None:
    for family in ("-4", "-6"):
        has = {
            (str(one.get("table", "main")), _network(one["dst"], family))
            for one in _json(
                "ip", "-json", family, "route", "show", "table", "all", "dev", setup.name
            )
            if one.get("protocol") != "kernel" and one.get("type", "unicast") == "unicast"
        }
        wanted = [route for route in setup.routes if _family(route.network) == family]
        for table, network in has - {(route.table, route.network) for route in wanted}:
            _run("ip", family, "route", "del", network, "dev", setup.name, "table", table)
        for route in wanted:
            if (route.table, route.network) not in has:
                _add_route(setup.name, route)


def _add_route(name: str, route: Route) -> None:
    """Never in the place of one that is there: it is the owner's."""
    family, place = _family(route.network), ("dev", name, "table", route.table)
    try:
        run("ip", family, "route", "add", route.network, *place, "proto", "static")
    except CommandError as err:
        if "File exists" not in str(err):
            raise TunnelError(str(err)) from err
        raise TunnelError(
            f"this machine has a route for {route.network} already, and it stays: the tunnel needs"
            " another range, or that route has to go"
        ) from err


def _ensure_rules(wanted: tuple[Rule, ...], priorities: range) -> None:
    for family in ("-4", "-6"):
        shown = _json("ip", "-json", family, "rule", "show")
        ours = [one for one in shown if one["priority"] in priorities]
        rules = [rule for rule in wanted if rule.family == family]
        if [(one["priority"], one["src"], one.get("fwmark")) for one in ours] == [
            (rule.priority, rule.source, rule.mark) for rule in rules
        ]:
            continue
        for one in ours:
            _run("ip", family, "rule", "del", "priority", str(one["priority"]))
        for rule in rules:
            _run("ip", family, "rule", "add", "priority", str(rule.priority), *rule.words)


# ------------------------------------------------------------------ looking


def look(name: str) -> Look | None:
    """None: there is no such interface."""
    if not exists(name):
        return None
    path = _socket_of(name)
    if path.is_socket():
        return _look_at_daemon(path)
    return look_at_kernel(_run("wg", "show", name, "dump"))


def _look_at_daemon(path: Path) -> Look:
    """By its socket: a command each time would cost more."""
    handshake_s, received = [0.0], 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(UAPI_S)
        try:
            door.connect(str(path))
            door.sendall(b"get=1\n\n")
            answer = door.makefile("r")
            for line in iter(answer.readline, "\n"):
                if not line:
                    raise TunnelError("wireguard-go hangs up")
                name, _, value = line.strip().partition("=")
                if name == "last_handshake_time_sec":
                    handshake_s.append(float(value))
                elif name == "last_handshake_time_nsec":
                    handshake_s[-1] += int(value) / 1e9
                elif name == "rx_bytes":
                    received += int(value)
        except OSError as err:
            raise TunnelError(f"wireguard-go does not answer: {type(err).__name__}") from err
    return Look(max(handshake_s), received)


def look_at_kernel(dump: str) -> Look:
    peers = [line.split("\t") for line in dump.splitlines()[1:]]
    handshakes = (float(peer[4]) for peer in peers)
    return Look(max(handshakes, default=0.0), sum(int(peer[5]) for peer in peers))


def probe(name: str, addresses: tuple[str, ...]) -> None:
    """A datagram that asks for nothing: the other end has to say that it lives."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as door, contextlib.suppress(OSError):
            door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            door.sendto(b"\0", (address, DISCARD_PORT))


# ------------------------------------------------------------------ the way to the other end


def places_of(endpoint: Endpoint) -> tuple[Endpoint, ...]:
    """Its addresses in the order of the machine's resolver; empty: nobody knows it now."""
    host, port = endpoint
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys((str(place[4][0]), port) for place in found))


def mtu_towards(place: Endpoint, fwmark: int) -> int | None:
    """Of the link on the way there; None: there is no way at the moment."""
    try:
        mark = ("mark", str(fwmark)) if fwmark else ()
        device = _json("ip", "-json", "route", "get", place[0], *mark)[0]["dev"]
        mtu: int = _json("ip", "-json", "link", "show", "dev", device)[0]["mtu"]
    except (TunnelError, LookupError):
        return None
    return mtu


# ------------------------------------------------------------------ small


def _socket_of(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


def _family(network: str) -> str:
    return "-6" if ":" in network else "-4"


def _network(written: str, family: str) -> str:
    """As ip shortens it: `default`, and an address for a network of one."""
    if written == "default":
        return "0.0.0.0/0" if family == "-4" else "::/0"
    if "/" in written:
        return written
    return f"{written}/{32 if family == '-4' else 128}"


def _json(name: str, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_run(name, *arguments) or "[]")
    return [one for one in found if one]  # ip says {} for what it filtered out


def _run(name: str, *arguments: str, text: str = "") -> str:
    try:
        return run(name, *arguments, text=text)
    except CommandError as err:
        raise TunnelError(str(err)) from err
