"""The networks that tasks with EGRESS run on: a pool of bridges that are used again and again,
since Docker has addresses for thirty; one owner on each at a time.

    networks.take(owner) -> Taken        in a job's thread; the same again for the same owner
    networks.release(owner)              from the loop, once nothing of the owner runs any more
    networks.hold(owner, name)           at start: what an earlier life had given

`take` raises NetworkWaitError (come back when `may_go(owner)` says so), NetworkError (it can't be
had, and why), or the engine's errors. A container may be put on a bridge only once `take` has
returned: then the vpn process has said, freshly, that its rules cover it. An owner is anything
hashable: an attempt's key, a layer's. The pool of installs (shared/egress.py: Names.install)
reaches the owner's package index and proxy besides. Reads vpn.state, through `hear`.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from procs.executor.engine import (
    BRIDGE_NAME,
    Engine,
    EngineAwayError,
    EngineRefusedError,
    NotThereError,
)
from procs.executor.sandbox import LABEL_HOME, resolv_conf
from shared import sentences
from shared.egress import MOST_BRIDGES, bridge, names, number
from shared.files import write_atomic
from shared.messages import TaskPhase, VpnState
from shared.sentences import Said
from shared.settings import Settings
from shared.taskdir import TaskKey

log = logging.getLogger("executor")

LABEL_NETWORK = "hivemind.network"
ISOLATED = "com.docker.network.bridge.enable_icc"  # "false": containers on it don't meet
MOST_TASK_NETWORKS, MOST_INSTALL_NETWORKS = 16, 4
ENSURE_EACH_S = 30.0  # while the firewall covers none
MOST_REFUSED = 8  # names that are tried for one network
AGAIN_S = 10.0  # before it is tried again to make one, or to use one where a stranger was


class NetworkError(Exception):
    """It can't be had."""

    def __init__(self, said: Said[TaskPhase]) -> None:
        super().__init__(said.text)
        self.said = said


class NetworkWaitError(Exception):
    """It can't be had now; the text says what it waits for."""


@dataclass(frozen=True)
class Taken:
    """A bridge that the firewall covers, and the resolvers that it lets through, in a file."""

    name: str
    resolvers: tuple[str, ...]


NO_NETWORK = Taken("", ())


@dataclass
class _Pool:
    """What both the loop and the jobs' threads touch; under the lock."""

    known: set[str] = field(default_factory=set)
    held: dict[Hashable, str] = field(default_factory=dict)
    again_at_s: float = 0.0  # nothing was free, and no more could be made
    is_adopted: bool = False


class Networks:
    """One pool; safe in any thread. The lock is never held over a call to the engine."""

    def __init__(self, engine: Engine, home: str, prefix: str, most: int) -> None:
        self._engine = engine
        self._home, self._prefix, self._most = home, prefix, most
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._pool = _Pool()
        self._covered: frozenset[str] = frozenset()
        self._resolvers: tuple[str, ...] = ()

    # -------------------------------------------------------------- from the loop

    def hear(self, vpn: VpnState | None) -> None:
        """None: no news, and so no word that anything is covered."""
        bridges = vpn.covered_bridges if vpn is not None else ()
        self._covered = frozenset(b for b in bridges if number(self._prefix, b) is not None)
        self._resolvers = vpn.resolvers if vpn is not None else ()

    def hold(self, owner: Hashable, name: str) -> None:
        with self._lock:
            self._pool.held[owner] = name

    def release(self, owner: Hashable) -> None:
        with self._lock:
            if self._pool.held.pop(owner, None) is not None:
                self._pool.again_at_s = 0.0

    def may_go(self, owner: Hashable, now_s: float) -> bool:
        """Is it worthwhile to call `take` again?"""
        with self._lock:
            name = self._pool.held.get(owner)
            return name in self._covered if name else now_s >= self._pool.again_at_s

    @property
    def has_covered(self) -> bool:
        """Is there a bridge of this pool that the firewall covers?"""
        return bool(self._covered)

    # -------------------------------------------------------------- in a job's thread

    def ensure(self) -> None:
        """At least one is there, so that the vpn process can say its word of it."""
        self._adopt()
        with self._lock:
            is_there = bool(self._pool.known)
        if not is_there:
            self._make_one(owner=None)

    def take(self, owner: Hashable) -> Taken:
        if not self._pool.is_adopted:
            self._adopt()
        name = self._again(owner) or self._free(owner) or self._make_one(owner)
        if name not in self._covered:
            raise NetworkWaitError(f"waiting for the firewall of its network {name}")
        resolvers = self._resolvers
        with self._writing:
            _name_resolvers(resolv_conf(Path(self._home), resolvers), resolvers)
        return Taken(name, resolvers)

    def _adopt(self) -> None:
        """Those of earlier lives; the engine's list is the truth of what is there."""
        names = self._engine.networks(self._home)
        with self._lock:
            found = {name for name in names if number(self._prefix, name) is not None}
            self._pool.known = found | set(self._pool.held.values())
            self._pool.is_adopted = True

    def _again(self, owner: Hashable) -> str:
        """What it has already, made anew if somebody removed it."""
        with self._lock:
            name = self._pool.held.get(owner, "")
        if name and not self._is_ours(name):
            self._make(name)
        return name

    def _free(self, owner: Hashable) -> str:
        """One of the pool that nobody has and no stranger is on; "": none."""
        with self._lock:
            candidates = sorted(self._pool.known - set(self._pool.held.values()))
        for name in candidates:
            if self._reserve(owner, name) and self._is_usable(owner, name):
                return name
        return ""

    def _reserve(self, owner: Hashable, name: str) -> bool:
        with self._lock:
            if name in self._pool.held.values():
                return False  # another was quicker
            self._pool.held[owner] = name
            return True

    def _is_usable(self, owner: Hashable, name: str) -> bool:
        """Else it is given back, and no longer known if it is gone."""
        try:
            found = self._engine.network(name)
            if not found.users and found.bridge == name:
                return True
            log.warning("network %s is not used: %s is on it", name, ", ".join(found.users))
        except NotThereError:
            with self._lock:
                self._pool.known.discard(name)
        except (EngineAwayError, EngineRefusedError):
            self.release(owner)
            raise
        self.release(owner)
        return False

    def _is_ours(self, name: str) -> bool:
        """Is it there, on the bridge that the firewall knows it by?"""
        try:
            found = self._engine.network(name)
        except NotThereError:
            return False
        return found.bridge == name and found.labels.get(LABEL_HOME) == self._home

    def _make_one(self, owner: Hashable | None) -> str:
        """One more; with an owner, it is theirs. An engine that died while it made one may refuse
        that bridge for ever and show nobody why: then another."""
        refused: set[str] = set()
        while True:
            name = self._new_name(owner, refused)
            try:
                self._make(name)
            except EngineAwayError:
                self._forget(owner, name)
                raise
            except EngineRefusedError as err:
                self._forget(owner, name)
                refused.add(name)
                if len(refused) == MOST_REFUSED:
                    raise self._cannot(str(err)) from err
            else:
                return name

    def _new_name(self, owner: Hashable | None, refused: set[str]) -> str:
        with self._lock:
            taken = self._pool.known | set(self._pool.held.values())
            if len(taken) >= self._most:
                self._pool.again_at_s = time.monotonic() + AGAIN_S
                raise NetworkWaitError(f"waiting for one of this node's {len(taken)} task networks")
            names = (bridge(self._prefix, n) for n in range(MOST_BRIDGES))
            name = next(name for name in names if name not in taken | refused)
            self._pool.known.add(name)
            if owner is not None:
                self._pool.held[owner] = name
            return name

    def _forget(self, owner: Hashable | None, name: str) -> None:
        with self._lock:
            self._pool.known.discard(name)
            if owner is not None:
                self._pool.held.pop(owner, None)

    def _make(self, name: str) -> None:
        labels = {LABEL_NETWORK: "egress", LABEL_HOME: self._home}
        try:
            self._engine.make_network(name, labels, {BRIDGE_NAME: name, ISOLATED: "false"})
        except EngineRefusedError:
            if not self._is_ours(name):
                raise
            return  # another thread was quicker, or a call before had no answer
        log.info("network %s is made", name)

    def _cannot(self, why: str) -> NetworkWaitError | NetworkError:
        """Docker has no more addresses, say: one of the pool will be free; with no pool, never."""
        with self._lock:
            self._pool.again_at_s = time.monotonic() + AGAIN_S
            count = len(self._pool.known)
        if count:
            return NetworkWaitError(f"waiting for one of this node's {count} task networks ({why})")
        return NetworkError(sentences.NETWORK_NOT_MADE.say(words=why))


def _name_resolvers(path: Path, resolvers: tuple[str, ...]) -> None:
    text = "".join(f"nameserver {address}\n" for address in resolvers)
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text.encode(), mode=0o644)


class Egress:
    """This worker's pools, as the loop has them; without EGRESS there are none."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.tasks: Networks | None = None
        self.installs: Networks | None = None
        self._ensure_due_s = 0.0
        self._ensured = False  # before: then the vpn process has had its time to see it
        if settings.egress:
            home, own = str(settings.home), names(settings.home)
            self.tasks = Networks(engine, home, own.task, MOST_TASK_NETWORKS)
            self.installs = Networks(engine, home, own.install, MOST_INSTALL_NETWORKS)
        self._pools = tuple(pool for pool in (self.tasks, self.installs) if pool is not None)

    def hear(self, vpn: VpnState | None) -> None:
        for pool in self._pools:
            pool.hear(vpn)

    def hold(self, key: TaskKey, name: str) -> None:
        if self.tasks is not None:
            self.tasks.hold(key, name)

    def release(self, key: TaskKey) -> None:
        if self.tasks is not None:
            self.tasks.release(key)

    def may_go(self, key: TaskKey, now_s: float) -> bool:
        return self.tasks is None or self.tasks.may_go(key, now_s)

    def lacks_one(self, now_s: float) -> bool:
        """Is it time to look whether there is a network that the vpn process can speak of?"""
        if self.tasks is None or self.tasks.has_covered or now_s < self._ensure_due_s:
            return False
        self._ensure_due_s = now_s + ENSURE_EACH_S
        return True

    def ensure(self) -> Callable[[], None]:
        """In a job's thread."""
        assert self.tasks is not None
        try:
            self.tasks.ensure()
        except (NetworkError, NetworkWaitError, EngineAwayError, EngineRefusedError) as err:
            log.warning("there is no network for tasks yet: %s", err)
            return _nothing
        if self._ensured:
            log.warning("no task network is covered by the firewall: see vpn.log; Docker must be in"
                        " the network namespace of the worker")  # fmt: skip
        self._ensured = True
        return _nothing


def _nothing() -> None:
    """There is nothing for the loop to do with it."""
