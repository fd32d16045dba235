"""The master's WireGuard interface: own calls of `ip` and `wg`, each of which blocks.

The kernel's where it has it, else wireguard-go in a session of its own: the tunnel outlives the
master, and the next one takes it over. Keys go to `wg` by its standard input alone.
"""

import base64
import binascii
import json
import logging
import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

log = logging.getLogger("master")

COMMAND_S = 10.0
MTU = "1420"  # 1500 less what WireGuard adds, over IPv6 too
PACKAGES = {"ip": "iproute2", "wg": "wireguard-tools", "wireguard-go": "wireguard-go"}
ISOLATED = "/proc/sys/net/ipv4/conf/{}/forwarding"


class WireGuardError(Exception):
    """The tunnel's end can't be made; the text says why."""


def make_key() -> str:
    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def public_key_of(private_key: str) -> str:
    key = X25519PrivateKey.from_private_bytes(base64.b64decode(private_key))
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def is_key(text: str) -> bool:
    """32 bytes in base64, written in the one right way."""
    try:
        return len(raw := base64.b64decode(text)) == 32 and base64.b64encode(raw) == text.encode()
    except (binascii.Error, ValueError):
        return False


@dataclass(frozen=True)
class End:
    """The interface as it should be. `peers`: public key → the one address that it may have."""

    interface: str
    private_key: str = field(repr=False)
    port: int
    address: str  # with the length of the range
    peers: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """As `wg` reads it."""
        lines = ["[Interface]", f"PrivateKey = {self.private_key}", f"ListenPort = {self.port}"]
        for key, address in self.peers.items():
            lines += ["[Peer]", f"PublicKey = {key}", f"AllowedIPs = {address}/32"]
        return "\n".join([*lines, ""])


def exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def put_up(end: End) -> None:
    """Make it so, whatever of it is there already; nothing of what stays is interrupted."""
    if exists(end.interface):
        _check_ours(end)
    else:
        _create(end.interface)
    set_peers(end)
    _set_address(end)
    _isolate(end.interface)
    _run("ip", "link", "set", "dev", end.interface, "mtu", MTU, "up")


def set_peers(end: End) -> None:
    """Those that it lacks come, those that it should not have go, the others notice nothing."""
    _run("wg", "syncconf", end.interface, "/dev/stdin", text=end.text())


def take_down(interface: str) -> None:
    """wireguard-go ends with its interface."""
    if exists(interface):
        _run("ip", "link", "del", "dev", interface)


def handshakes(interface: str) -> dict[str, int]:
    """Public key → when its last handshake was, in UTC seconds; 0: there was none."""
    shown = _run("wg", "show", interface, "latest-handshakes")
    rows = [line.split("\t") for line in shown.split("\n")]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def _check_ours(end: End) -> None:
    """A master that was killed leaves its interface; anyone else's is not touched."""
    try:
        key = _run("wg", "show", end.interface, "public-key").strip()
    except WireGuardError as err:
        raise WireGuardError(f"{end.interface} is there, and can't be used: {err}") from err
    if key not in ("(none)", public_key_of(end.private_key)):
        raise WireGuardError(f"{end.interface} is there already, and has another key: not ours")


def _create(interface: str) -> None:
    try:
        _run("ip", "link", "add", "dev", interface, "type", "wireguard")
    except WireGuardError as err:
        log.info("no WireGuard in the kernel (%s): wireguard-go is used", err)
        _start_daemon(interface)


def _start_daemon(interface: str) -> None:
    """It goes into the background itself once the interface is there."""
    try:
        done = subprocess.run(
            ("wireguard-go", interface),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the daemon keeps what it is given open
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise WireGuardError(_words("wireguard-go", err)) from err
    if done.returncode != 0 or not exists(interface):
        needs = "/dev/net/tun and the capability NET_ADMIN"
        raise WireGuardError(f"wireguard-go can't make {interface}: it needs {needs}")


def _set_address(end: End) -> None:
    shown = json.loads(_run("ip", "-json", "-4", "addr", "show", "dev", end.interface) or "[]")
    known = [f"{a['local']}/{a['prefixlen']}" for one in shown for a in one.get("addr_info", ())]
    if known != [end.address]:
        _run("ip", "-4", "addr", "flush", "dev", end.interface)
        _run("ip", "-4", "addr", "add", end.address, "dev", end.interface)


def _isolate(interface: str) -> None:
    """Nodes reach the master, and through it nobody."""
    try:
        Path(ISOLATED.format(interface)).write_text("0")
    except OSError as err:
        log.warning("nodes may reach each other through this machine if it forwards: %s", err)


def _run(*command: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise WireGuardError(_words(command[0], err)) from err
    if done.returncode != 0:
        said = done.stderr.strip().partition("\n")[0]
        raise WireGuardError(f"{' '.join(command[:3])}: {said or done.returncode}")
    return done.stdout


def _words(command: str, err: OSError | subprocess.TimeoutExpired) -> str:
    if isinstance(err, FileNotFoundError):
        return f"there is no command {command}: install {PACKAGES[command]}"
    return f"{command}: {err}"
