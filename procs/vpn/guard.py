"""Keeps the firewall of task networks in force, whatever the tunnel does.

The kernel rings at each change of the rules or of the host's networks; beyond that there is a
look each LOOK_S. What it does happens in threads of its own. The rules outlive the process.
"""

import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from procs.vpn import nft
from procs.vpn.errand import Errand
from procs.vpn.firewall import Host, direct, endpoints, most_flows, resolvers, rules
from procs.vpn.nft import Bell, NftError
from shared.egress import Names, names, number
from shared.settings import Settings

log = logging.getLogger("vpn")

LOOK_S = 30.0  # without a bell; resolvers change without one
LATE_S = 5.0  # without a word from a thread for so long the rules are not vouched for
LEAST_RETRY_S, MOST_RETRY_S = 1.0, LOOK_S
RESOLVE_S = 60.0  # the package index may move
TABLE = Path("/proc/sys/net/netfilter/nf_conntrack_max")
RESOLV_CONF, SYSTEMD = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")


Endpoint = tuple[str, int]  # host or address, port
Index = dict[Endpoint, tuple[Endpoint, ...]]  # as it is written → where that is


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
        self._look: Errand[Held] = Errand("look")
        self._resolving: Errand[Index] = Errand("resolve")
        indexes = f"{settings.pip_index_url} {settings.pip_extra_index_url}"
        self._endpoints = endpoints(indexes, settings.pip_proxy)
        self._index: Index = {}
        self._rules_bell = _bell(nft.NETLINK_NETFILTER, nft.TABLES_CHANGED, self._names.table)
        self._routes_bell = _bell(nft.NETLINK_ROUTE, nft.ROUTES_CHANGED)
        self._look_due_s = self._resolve_due_s = 0.0
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
        began_s = self._look.began_s
        late = began_s is not None and now_s - began_s > LATE_S
        return () if late or self._held.listing is None else self._bridges()

    # -------------------------------------------------------------- the loop

    def descriptors(self) -> Iterable[int]:
        sources = (self._look, self._resolving, self._rules_bell, self._routes_bell)
        return [source.fileno() for source in sources if source is not None]

    def beat(self, now_s: float) -> None:
        if not self._is_needed():
            self.has_looked = True
            return
        if now_s >= self._look_due_s:
            self._begin_look(now_s)
        if self._endpoints and now_s >= self._resolve_due_s and self._resolving.began_s is None:
            self._resolve_due_s = now_s + RESOLVE_S
            self._resolving.start(partial(_resolved, self._endpoints, self._index), now_s)

    def wake(self, ready: set[int], now_s: float) -> bool:
        """Did it learn something that is to be said?"""
        if _rang(self._rules_bell, ready) and self._is_needed():
            self._look_due_s = 0.0
            self._begin_look(now_s)
        if _rang(self._routes_bell, ready):
            self._look_due_s = 0.0  # at the next beat: they come in crowds
        index = self._resolving.result() if self._resolving.fileno() in ready else None
        if index is not None and index != self._index:
            self._index, self._look_due_s = index, 0.0
        held = self._look.result() if self._look.fileno() in ready else None
        return held is not None and self._learn(held, now_s)

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

    def _is_needed(self) -> bool:
        """With EGRESS=off only for what earlier tasks may still run on."""
        return self._settings.egress or bool(self._bridges())

    def _begin_look(self, now_s: float) -> None:
        """One that is under way may have seen the state before the change: again after it."""
        if self._look.began_s is None:
            self._look_due_s = now_s + LOOK_S
            self._look.start(partial(self._hold, self._held, self._index), now_s)

    def _learn(self, held: Held, now_s: float) -> bool:
        before, self._held = self._held, held
        self.has_looked = True
        if held.listing is None:
            self._look_due_s = min(self._look_due_s, now_s + self._retry_s)
            self._retry_s = min(2 * self._retry_s, MOST_RETRY_S)
        else:
            self._retry_s = LEAST_RETRY_S
        if held.put:
            log.info("the rules of task networks are set; resolvers %s", held.resolvers)
        if now_s >= self._look_due_s:
            self._begin_look(now_s)
        return (held.why, held.resolvers) != (before.why, before.resolvers)

    # -------------------------------------------------------------- in a thread

    def _hold(self, before: Held, index: Index) -> Held:
        """Look; if the rules are not as they should be, put them."""
        try:
            host = self._host(index)
            wanted = rules(self._names, host)
            listing = nft.listing(self._names.table)
            if listing is not None and (wanted, listing) == (before.rules, before.listing):
                return Held(wanted, listing, host.resolvers)
            nft.put(wanted)
            listing = nft.listing(self._names.table)
        except NftError as err:
            return Held(why=f"the firewall of task networks is not in force: {err}")
        return Held(wanted, listing, host.resolvers, put=True)

    def _host(self, index: Index) -> Host:
        chosen = self._settings.egress_dns
        return Host(
            resolvers=resolvers(chosen, _read(RESOLV_CONF), _read(SYSTEMD)),
            direct=direct(nft.routes()),
            tunnel=self._settings.wireguard_config.stem,
            index=tuple(sorted({place for places in index.values() for place in places})),
            most_flows=most_flows(_read(TABLE)),
        )


def _resolved(wanted: Iterable[Endpoint], known: Index) -> Index:
    """A name that can't be resolved now keeps the addresses that it had."""
    return {one: nft.addresses(*one) or known.get(one, ()) for one in wanted}


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
