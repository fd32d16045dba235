"""Keeps the firewall of task networks in force, whatever the tunnel does.

The kernel rings at each change of the rules or of the host's networks; beyond that there is a
look each LOOK_S. What it does happens in threads of its own. The rules outlive the process.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from procs.vpn import firewall, nft
from procs.vpn.firewall import Host
from procs.vpn.nft import Bell, NftError
from shared.egress import Names, names, number
from shared.settings import Settings

log = logging.getLogger("vpn")

LOOK_S = 30.0  # without a bell; resolvers change without one
LATE_S = 5.0  # without a word from a thread for so long the rules are not vouched for
LEAST_RETRY_S, MOST_RETRY_S = 1.0, LOOK_S
RESOLV_CONF, SYSTEMD = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")


@dataclass(frozen=True)
class Held:
    """What a look found or did. `listing` None: the rules are not in force, `why` says why."""

    rules: str = ""
    listing: str | None = None
    resolvers: tuple[str, ...] = ()
    why: str = ""
    put: bool = False


class Guard:
    """The loop's side: every attribute belongs to the loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = names(settings.home)
        self._held = Held(why="the firewall of task networks is being set")
        self._done: SimpleQueue[Held] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._rules_bell = _bell(nft.NETLINK_NETFILTER, nft.TABLES_CHANGED, self._names.table)
        self._routes_bell = _bell(nft.NETLINK_ROUTE, nft.ROUTES_CHANGED)
        self._looks_since_s: float | None = None
        self._due_s = 0.0
        self._retry_s = LEAST_RETRY_S
        self.has_looked = False

    @property
    def why_open(self) -> str:
        return self._held.why

    @property
    def resolvers(self) -> tuple[str, ...]:
        return self._held.resolvers

    def covered(self, now_s: float) -> tuple[str, ...]:
        """The bridges in this network namespace that the rules are in force for."""
        late = self._looks_since_s is not None and now_s - self._looks_since_s > LATE_S
        if self._held.listing is None or late:
            return ()
        return self._bridges()

    # -------------------------------------------------------------- the loop

    def descriptors(self) -> Iterable[int]:
        bells = (self._rules_bell, self._routes_bell)
        return (self._wake, *(bell.fileno() for bell in bells if bell is not None))

    def beat(self, now_s: float) -> None:
        if now_s >= self._due_s:
            self._look(now_s)

    def wake(self, ready: set[int], now_s: float) -> bool:
        """Did it learn something that is to be said?"""
        if _rang(self._rules_bell, ready):
            self._due_s = 0.0
            self._look(now_s)
        if _rang(self._routes_bell, ready):
            self._due_s = 0.0  # at the next beat: they come in crowds
        return self._take(now_s) if self._wake in ready else False

    def close(self) -> None:
        for bell in (self._rules_bell, self._routes_bell):
            if bell is not None:
                bell.close()
        if not self._bridges():
            self._leave()

    def _leave(self) -> None:
        """There is nothing to guard: leave nothing behind."""
        try:
            nft.remove(self._names.table)
        except NftError as err:
            log.debug("the rules of task networks are not removed: %s", err)

    def _bridges(self) -> tuple[str, ...]:
        found = (name for _, name in socket.if_nameindex())
        return tuple(sorted(name for name in found if _is_ours(self._names, name)))

    def _look(self, now_s: float) -> None:
        if self._looks_since_s is not None:
            return  # again when it has ended: it may have seen the state before the change
        self._looks_since_s, self._due_s = now_s, now_s + LOOK_S
        threading.Thread(target=self._run, args=(self._held,), name="look", daemon=True).start()

    def _take(self, now_s: float) -> bool:
        os.eventfd_read(self._wake)
        try:
            held = self._done.get_nowait()
        except Empty:
            return False
        before, self._held, self._looks_since_s = self._held, held, None
        self.has_looked = True
        if held.listing is None:
            self._due_s = min(self._due_s, now_s + self._retry_s)
            self._retry_s = min(2 * self._retry_s, MOST_RETRY_S)
        else:
            self._retry_s = LEAST_RETRY_S
        if held.put:
            log.info("the rules of task networks are in force, resolvers %s", held.resolvers)
        if self._due_s <= now_s:
            self._look(now_s)
        return (held.why, held.resolvers) != (before.why, before.resolvers)

    # -------------------------------------------------------------- in a thread

    def _run(self, before: Held) -> None:
        self._done.put(self._hold(before))
        os.eventfd_write(self._wake, 1)

    def _hold(self, before: Held) -> Held:
        """Look; if the rules are not as they should be, put them."""
        try:
            host = self._host()
            wanted = firewall.rules(self._names, host)
            listing = nft.listing(self._names.table)
            if listing is not None and (wanted, listing) == (before.rules, before.listing):
                return Held(wanted, listing, host.resolvers)
            nft.put(wanted)
            listing = nft.listing(self._names.table)
        except NftError as err:
            return Held(why=f"the firewall of task networks is not in force: {err}")
        return Held(wanted, listing, host.resolvers, put=True)

    def _host(self) -> Host:
        return Host(
            resolvers=firewall.resolvers(
                self._settings.egress_dns, _read(RESOLV_CONF), _read(SYSTEMD)
            ),
            direct=firewall.direct(nft.routes()),
            tunnel=self._settings.wireguard_config.stem,
        )


def _is_ours(own: Names, name: str) -> bool:
    return any(number(prefix, name) is not None for prefix in (own.task, own.install))


def _bell(protocol: int, groups: int, word: str = "") -> Bell | None:
    try:
        return Bell(protocol, groups, word)
    except NftError as err:
        log.warning("task networks: %s; there is a look each %.0f s", err, LOOK_S)
        return None


def _rang(bell: Bell | None, ready: set[int]) -> bool:
    return bell is not None and bell.fileno() in ready and bell.rang()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
