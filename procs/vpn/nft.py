"""The edges to the kernel's networking: the commands nft and ip, and the bells of netlink.

All of it blocks for milliseconds, or for as long as a sick machine likes: never in the loop,
but for `Bell`, which only empties a socket.
"""

import json
import socket
from typing import Any

from procs.vpn.command import CommandError, run

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12  # <linux/netlink.h>
LINKS_CHANGED = 0x1 | 0x10  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR
ROUTES_CHANGED = 0x10 | 0x40  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
TABLES_CHANGED = 1 << 6  # NFNLGRP_NFTABLES, the seventh group
BELL_BYTES = 65536


class NftError(Exception):
    """The rules can't be set or seen; the text says why and what to do."""


def put(rules: str) -> None:
    """In force, all of them, when it returns."""
    _run("nft", "-f", "-", text=rules)


def listing(table: str) -> str | None:
    """The table as the kernel has it, without what it counts; None: it has none."""
    try:
        return _run("nft", "--stateless", "--terse", "list", "table", "inet", table)
    except NftError as err:
        if "No such file or directory" in str(err):
            return None
        raise


def remove(table: str) -> None:
    """It may be gone already."""
    _run("nft", "-f", "-", text=f"table inet {table} {{\n}}\ndelete table inet {table}\n")


def routes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        _run("ip", "-json", "-4", "route", "show", "table", "all") or "[]"
    )
    return found


def addresses(host: str, port: int) -> tuple[tuple[str, int], ...]:
    """Of a name, IPv4; empty where nobody knows it now."""
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(sorted({(str(place[4][0]), port) for place in found}))


def _run(name: str, *arguments: str, text: str = "") -> str:
    try:
        return run(name, *arguments, text=text)
    except CommandError as err:
        raise NftError(str(err)) from err


class Bell:
    """A netlink socket that the kernel writes to at each change; it says only that one was."""

    def __init__(self, protocol: int, groups: int, word: str = "") -> None:
        """`word`: only changes that name it count."""
        self._word = word.encode()
        flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, flags, protocol)
            self._socket.bind((0, groups))
        except OSError as err:
            raise NftError(f"changes can't be followed: {err}") from err

    def fileno(self) -> int:
        return self._socket.fileno()

    def rang(self) -> bool:
        """Empty it: was there a change that counts?"""
        found = False
        while True:
            try:
                found = self._word in self._socket.recv(BELL_BYTES) or found
            except BlockingIOError:
                return found
            except OSError:  # ENOBUFS: more changes than it could hold
                found = True

    def close(self) -> None:
        self._socket.close()
