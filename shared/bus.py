"""The bus: one XPUB socket per process, replaying its last STATE to each new subscriber.

All of zmq in the program is in this file, and its errors end here. A `Bus` belongs to one
thread. Threads poll it with `wait`, asyncio programs through a `LoopWatch`.
"""

import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import zmq

from shared import codec
from shared.messages import Message
from shared.topics import TOPICS, owned_by

if TYPE_CHECKING:
    import asyncio  # the threaded processes do without its megabytes

M = TypeVar("M", bound=Message)

SEND_HIGH_WATER = 200  # messages queued for one stopped reader: bounds the memory it costs
MAX_DRAIN = 1000  # messages taken in one wake: a flood must not stop the beat
SETTLED_NS = 1_000_000_000  # a folder's stamp is coarse: within this two changes may share one
BEAT_SPREAD_S = 0.015  # all processes have beaten so long after a whole second
RECONNECT_MS = 20  # a restarted peer is heard again within milliseconds …
RECONNECT_MAX_MS = 200  # … and one that stays away costs five tries a second
LOCK_WAIT_S = 5.0  # an old holder that was just killed is gone by then
LOCK_POLL_S = 0.05
READABLE = int(zmq.POLLIN)  # to reckon with the enum itself costs more than the call
MAX_SOCKET_PATH = 103  # 107 for a unix socket, less what zmq and the lock file add


class BusError(Exception):
    """The bus can't be used as asked: a second holder, a foreign topic."""


class PathTooLongError(BusError):
    """The home's path leaves no room for the name of a socket."""


def bus_directory(home: Path) -> Path:
    return home / "run" / "bus"


def take_lock(path: Path, wait_s: float | None = None) -> int:
    """Hold `path` for the life of this process; the descriptor. BusError when another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    deadline_s = time.monotonic() + (LOCK_WAIT_S if wait_s is None else wait_s)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline_s:
                time.sleep(LOCK_POLL_S)
                continue
            os.close(descriptor)
            raise BusError(f"another process holds {path}; is a second worker running?") from None
        return descriptor


class Inbox:
    """The newest STATE of each (topic, source), by the publisher's clock. No I/O: tests feed it."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.latest: dict[str, dict[str, Message]] = {topic: {} for topic in topics}
        self.dropped = 0

    def take(self, frames: Iterable[Sequence[bytes]], speaker: str | None = None) -> bool:
        """Keep what is newest; True if anything was. Who names itself other than `speaker`,
        whose socket it came from, is not heard."""
        changed = False
        for parts in frames:
            changed = self._take_one(parts, speaker) or changed
        return changed

    def _take_one(self, parts: Sequence[bytes], speaker: str | None) -> bool:
        try:
            _, source_raw, body = parts
            source, message = source_raw.decode(), codec.decode(body)
        except ValueError:
            self.dropped += 1
            return False
        known = self.latest.get(message.topic)
        foreign = message.topic not in owned_by(source) or speaker not in (None, source)
        if known is None or foreign:
            self.dropped += 1
            return False
        older = known.get(source)
        if older is not None and message.at_s < older.at_s:
            return False
        known[source] = message
        return True

    def fresh(self, kind: type[M], now_s: float, source: str | None = None) -> M | None:
        """The newest synced message of `kind` that is not stale; None means no news."""
        newest: M | None = None
        for speaker, message in self.latest[str(kind.__struct_config__.tag)].items():
            if (
                isinstance(message, kind)
                and message.synced
                and _is_fresh(message, now_s)
                and source in (None, speaker)
                and (newest is None or message.at_s > newest.at_s)
            ):
                newest = message
        return newest

    def all_fresh(self, kind: type[M], now_s: float) -> dict[str, M]:
        """Each source's newest message of `kind`, without the stale and the unsynced."""
        topic = str(kind.__struct_config__.tag)
        return {
            source: message
            for source, message in self.latest[topic].items()
            if isinstance(message, kind) and message.synced and _is_fresh(message, now_s)
        }


@functools.cache
def _stale_after_s(topic: str) -> float:
    return TOPICS[topic].stale_after_s


def _is_fresh(message: Message, now_s: float) -> bool:
    """By the publisher's clock: a reader that slept finds old messages queued first."""
    return now_s - message.at_s < _stale_after_s(message.topic)


def _has_news(socket: "zmq.Socket[bytes]") -> bool:
    """What poll(0) says, at a tenth of its cost."""
    return bool(int(socket.get(zmq.EVENTS)) & READABLE)


def settle_s(now_s: float) -> float:
    """How long to wait so that the beats of all processes are taken in one wake: each wake costs
    more than what it brings."""
    return max(BEAT_SPREAD_S - now_s % 1.0, 0.0)


class Bus:
    """This process's socket, bound, and its subscriptions, connected, there or not yet.

    One socket for each source: what comes in on it is that source's word and no other's.
    """

    def __init__(self, home: Path, name: str, reads: Iterable[str] = ()) -> None:
        self.name = name
        self.inbox = Inbox(reads)
        self._directory = bus_directory(home)
        self._path = self._directory / f"{name}.sock"
        self._last: dict[str, list[bytes]] = {}
        self._subscribers: dict[str, zmq.Socket[bytes]] = {}
        self._looked_at_ns = 0
        self._filenos: tuple[int, ...] = ()
        self._sources_by_fileno: dict[int, str] = {}
        self._watched: set[int] = set()  # beside the sockets
        if len(str(self._path)) > MAX_SOCKET_PATH:
            raise PathTooLongError(
                f"{self._path} is too long for a unix socket (over {MAX_SOCKET_PATH} characters);"
                " set HIVEMIND_HOME to a shorter path"
            )
        self._lock = take_lock(self._directory / f"{name}.lock")
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._bind()
        self.connect_new()

    def _bind(self) -> None:
        self._publisher = self._context.socket(zmq.XPUB)
        self._publisher.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        self._publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._publisher.setsockopt(zmq.LINGER, 0)
        try:
            self._publisher.bind(f"ipc://{self._path}")
        except zmq.ZMQError as err:
            self.close()
            raise BusError(f"can't bind {self._path}: {err}") from err
        self._poller.register(self._publisher, zmq.POLLIN)

    def connect_new(self) -> None:
        """Connect to every owner of a topic that is read; monitors are found by their sockets."""
        changed_ns = self._directory.stat().st_mtime_ns
        if changed_ns == self._looked_at_ns:
            return
        if time.time_ns() - changed_ns > SETTLED_NS:  # else more may come under the same stamp
            self._looked_at_ns = changed_ns
        for topic in self.inbox.latest:
            for source in self._sources(topic):
                if source not in self._subscribers and source != self.name:
                    self._subscribers[source] = self._subscribe(source)
        filenos = {int(socket.fileno()): source for source, socket in self._subscribers.items()}
        self._sources_by_fileno = filenos
        self._filenos = (int(self._publisher.fileno()), *filenos)

    def _subscribe(self, source: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.setsockopt(zmq.RCVHWM, MAX_DRAIN)
        for topic in self.inbox.latest.keys() & set(owned_by(source)):
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(f"ipc://{self._directory / source}.sock")
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _sources(self, topic: str) -> list[str]:
        owner = TOPICS[topic].owner
        if owner != "monitor":
            return [owner]
        found = [path.stem for path in self._directory.iterdir() if path.suffix == ".sock"]
        return [source for source in found if topic in owned_by(source)]

    def sources(self, kind: type[Message]) -> list[str]:
        """Who may speak of it and has a socket here, whether it speaks or not."""
        topic = str(kind.__struct_config__.tag)
        return [source for source in self._subscribers if topic in owned_by(source)]

    def publish(self, message: Message) -> None:
        """Send a STATE and keep it for those who subscribe later."""
        if message.topic not in owned_by(self.name):
            raise BusError(f"{self.name} may not publish {message.topic}")
        frames = [message.topic.encode(), self.name.encode(), codec.encode(message)]
        self._last[message.topic] = frames
        self._publisher.send_multipart(frames)
        self._replay_all()  # to send can hide a subscription from the descriptor

    def wait(self, timeout_s: float, descriptors: Iterable[int] = ()) -> set[int]:
        """Sleep until news, a readable descriptor, or the time; take all news.

        Returns those of `descriptors` that are readable.
        """
        self._watch(set(descriptors))
        ready = dict(self._poller.poll(max(0, int(timeout_s * 1000 + 0.999))))
        readable = {fd for fd in self._watched if fd in ready}
        if ready and not readable:
            time.sleep(settle_s(time.monotonic()))
            self.drain()
        else:  # looking at each socket costs more than all else here
            self._take([s for s, socket in self._subscribers.items() if socket in ready])
            if self._publisher in ready:
                self._replay_all()
        return readable

    def _watch(self, descriptors: set[int]) -> None:
        """They are the same nearly always."""
        if descriptors == self._watched:
            return
        for descriptor in self._watched - descriptors:
            self._poller.unregister(descriptor)
        for descriptor in descriptors - self._watched:
            self._poller.register(descriptor, zmq.POLLIN)
        self._watched = descriptors

    def drain(self, descriptor: int | None = None) -> bool:
        """Replay to new subscribers and take all that came, or what woke this one of `filenos()`;
        True if any STATE is newer."""
        if descriptor in self._sources_by_fileno:
            return self._take((self._sources_by_fileno[descriptor],))
        self._replay_all()
        return descriptor is None and self._take(self._subscribers)

    def _replay_all(self) -> None:
        for _ in range(MAX_DRAIN):
            if not _has_news(self._publisher):
                break
            self._replay(self._publisher.recv())

    def _take(self, sources: Iterable[str]) -> bool:
        changed = False
        for source in sources:
            socket = self._subscribers[source]
            frames: list[list[bytes]] = []
            while len(frames) < MAX_DRAIN and _has_news(socket):
                frames.append(socket.recv_multipart())
            changed = self.inbox.take(frames, source) or changed
        return changed

    def _replay(self, subscription: bytes) -> None:
        if subscription[:1] != b"\x01":
            return
        for topic, frames in self._last.items():
            if topic.encode().startswith(subscription[1:]):
                self._publisher.send_multipart(frames)

    def filenos(self) -> tuple[int, ...]:
        """For an asyncio loop: readable means "drain it", to the end, since zmq's descriptors
        only signal an edge; ask again after `connect_new`."""
        return self._filenos

    def close(self) -> None:
        self._context.destroy(linger=0)
        os.close(self._lock)


class LoopWatch:
    """Takes what comes in an asyncio loop, and calls `on_news`; for what comes with the beats,
    once."""

    def __init__(
        self, bus: Bus, loop: "asyncio.AbstractEventLoop", on_news: Callable[[], None]
    ) -> None:
        self._bus, self._loop, self._on_news = bus, loop, on_news
        self._watched: tuple[int, ...] = ()
        self._settling: asyncio.TimerHandle | None = None
        self._rests = False
        self._watch()

    def _watch(self) -> None:
        self._watched = self._bus.filenos()
        for descriptor in self._watched:
            self._loop.add_reader(descriptor, self._on_readable, descriptor)

    def _pause(self) -> None:
        for descriptor in self._watched:
            self._loop.remove_reader(descriptor)
        self._watched = ()

    def _on_readable(self, descriptor: int) -> None:
        if not self._settle() and self._bus.drain(descriptor):
            self._on_news()

    def beat(self, rests: bool = False) -> None:
        """For one's own beat, before the others' can wake the loop; with `rests`, nothing wakes it
        until the next."""
        self._rests = rests
        if not self._settle():
            self._settled()

    def _settle(self) -> bool:
        """Just after a whole second: hear nothing until all have beaten, then `on_news` once.
        False at any other time."""
        wait_s = settle_s(time.monotonic())
        if wait_s > 0 and self._settling is None:
            self._pause()
            self._settling = self._loop.call_later(wait_s, self._settled)
        return wait_s > 0

    def _settled(self) -> None:
        self._settling = None
        self._pause()
        if not self._rests:
            self._watch()
        self._bus.drain()
        self._on_news()

    def close(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        self._pause()


class Beats:
    """When each process last spoke, whatever it said; for the watchdog.

    Nothing wakes for it and little is decoded: `take`, once a beat, looks at the newest
    message of each topic only. Ends with the bus that it was made for.
    """

    def __init__(self, bus: Bus) -> None:
        self._directory, self._own = bus._directory, bus.name
        self._connected: set[str] = set()
        self._socket = bus._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.RCVHWM, MAX_DRAIN)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")

    def take(self) -> dict[str, float]:
        """(source → newest `at_s`) of all that came since the last call."""
        for path in self._directory.iterdir():
            known = path.stem in self._connected or path.stem == self._own
            if path.suffix == ".sock" and not known:
                self._connected.add(path.stem)
                self._socket.connect(f"ipc://{path}")
        newest: dict[tuple[bytes, ...], list[bytes]] = {}
        for _ in range(MAX_DRAIN):
            if not _has_news(self._socket):
                break
            frames = self._socket.recv_multipart()
            newest[tuple(frames[:2])] = frames
        return self._at_s(newest.values())

    @staticmethod
    def _at_s(newest: Iterable[list[bytes]]) -> dict[str, float]:
        inbox = Inbox(TOPICS)
        inbox.take(newest)
        found: dict[str, float] = {}
        for messages in inbox.latest.values():
            for source, message in messages.items():
                found[source] = max(message.at_s, found.get(source, message.at_s))
        return found


class Tap:
    """Reads every socket in the bus directory, those that appear later too; never felt."""

    def __init__(self, home: Path, topics: Iterable[str] = ()) -> None:
        self._directory = bus_directory(home)
        self.dropped = 0
        self._connected: set[str] = set()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        for topic in tuple(topics) or ("",):
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())

    def next(self, timeout_s: float) -> tuple[str, Message] | None:
        """(source, message) of what passes next; None after `timeout_s` without."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._connect_new()
            left_s = max(0.0, deadline_s - time.monotonic())
            if not self._socket.poll(int(left_s * 1000 + 0.999)):
                return None
            try:
                _, source, body = self._socket.recv_multipart()
                return source.decode(), codec.decode(body)
            except ValueError:  # not a message of ours: another version's, or a stranger's
                self.dropped += 1

    def _connect_new(self) -> None:
        for path in self._directory.glob("*.sock"):
            if path.name not in self._connected:
                self._connected.add(path.name)
                self._socket.connect(f"ipc://{path}")

    def close(self) -> None:
        self._context.destroy(linger=0)
