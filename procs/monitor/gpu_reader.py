"""Reads cards in threads, since a call into the driver may never return.

One thread reads all cards, one after the other. When it hangs at one, that card is left to it and
another thread reads the rest; when the call returns after all, the card is read again. The loop
asks, waits a moment for the answer, and takes what there is.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from procs.monitor.gpu_core import STALE_S, Seen
from procs.monitor.gpu_nvml import DriverError, Nvml, library_was_replaced
from shared.messages import GpuSample

PATIENCE_S = 0.3  # of the loop, with a reading that takes a few milliseconds
REOPEN_S = 10.0  # between two looks for a driver, or for a card that was lost …
REOPEN_MOST_S = 60.0  # … doubling up to this: the session's other cards pause meanwhile
DRIVER = ""  # in a card's place: a call that is of none


class Shared:
    """What all threads of one reader work on."""

    def __init__(self, wanted: Sequence[str], nvml: Nvml) -> None:
        self.wanted = tuple(wanted)  # none: all that the driver has
        self.nvml = nvml
        self.seen: dict[str, Seen] = {}
        self.why = ""  # nothing can be read
        self.is_read = False  # once, to its end
        self.is_outdated = False  # the library is another by now
        self._known: dict[str, None] = {}
        self._open_at_s, self._open_after_s = float("-inf"), REOPEN_S

    def open(self) -> None:
        """DriverError."""
        self.nvml.open()
        self._known.update(dict.fromkeys(self.nvml.cards))

    def cards(self) -> tuple[str, ...]:
        return self.wanted or tuple(self._known)

    def must_open(self, now_s: float) -> bool:
        """There is no session, or one that lacks a card; not too often."""
        lost = not self.cards() or any(
            uuid in self.seen and not self.seen[uuid].sample.reachable for uuid in self.cards()
        )
        if self.nvml.is_open and not lost:
            self._open_after_s = REOPEN_S
            return False
        if now_s < self._open_at_s:
            return False
        self._open_at_s = now_s + self._open_after_s
        if self.nvml.is_open:
            self._open_after_s = min(2 * self._open_after_s, REOPEN_MOST_S)
        return True

    def take(self, uuid: str, samples: Sequence[GpuSample], now_s: float) -> None:
        """A card's reading, and of its instances those that there still are."""
        self.seen.update({sample.uuid: Seen(sample, now_s) for sample in samples})
        told = {sample.uuid for sample in samples}
        for other, seen in tuple(self.seen.items()):
            if seen.sample.mig_of == uuid and other not in told:
                del self.seen[other]


class Hand(threading.Thread):
    """Reads when it is asked. One that hangs is let go: it ends with the call that it is in."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(name="nvml", daemon=True)
        self.at, self.since_s = DRIVER, time.monotonic()  # the card that it reads, since when
        self.is_busy = False  # as the loop knows it
        self._is_let_go = False
        self._lock = threading.Lock()
        self._shared = shared
        self._asked: queue.SimpleQueue[frozenset[str] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.start()

    def ask(self, without: Iterable[str]) -> None:
        """For a reading of all but these cards."""
        self.is_busy = True
        self._asked.put(frozenset(without))

    def wait(self, timeout_s: float) -> None:
        try:
            self._done.get(timeout=timeout_s)
        except queue.Empty:
            return
        self.is_busy = False

    def hangs_s(self) -> float:
        return time.monotonic() - self.since_s if self.is_busy else 0.0

    def let_go(self) -> str | None:
        """The card that it hangs at, which is left to it. None: it went on just now, or hangs in
        a call that is of no card: then no other thread would get further."""
        with self._lock:
            if self.at == DRIVER or self.hangs_s() < STALE_S:
                return None
            self._is_let_go = True
            return self.at

    # -------------------------------------------------------------- in the thread

    def run(self) -> None:
        while not self._is_let_go and (asked := self._asked.get()) is not None:
            try:
                self._read(asked)
            except DriverError as err:
                self._give_up(err, is_alone=not asked)
            self._done.put(None)

    def _goes_on_to(self, card: str) -> bool:
        """False: it has been let go, and touches nothing any more."""
        with self._lock:
            if not self._is_let_go:
                self.since_s = time.monotonic()
                self.at = card
            return not self._is_let_go

    def _read(self, skipped: frozenset[str]) -> None:
        """A session is opened and closed only while no other thread is in a call."""
        shared = self._shared
        if not self._goes_on_to(DRIVER):
            return
        if not skipped and shared.must_open(time.monotonic()):
            shared.open()
        if not shared.nvml.is_open:
            shared.is_outdated = library_was_replaced()
            return
        shared.nvml.take_events()
        for uuid in shared.cards():
            if uuid in skipped:
                continue
            if not self._goes_on_to(uuid):
                return
            shared.take(uuid, shared.nvml.read(uuid), time.monotonic())
        shared.why, shared.is_read = "", True

    def _give_up(self, err: DriverError, is_alone: bool) -> None:
        shared = self._shared
        if not self._goes_on_to(DRIVER):
            return
        shared.why = str(err)
        if is_alone:
            shared.nvml.close()


class Reader:
    """The loop's side. `wanted`: UUIDs; none: every card there is."""

    def __init__(self, wanted: Sequence[str], log: logging.Logger) -> None:
        self.shared = Shared(wanted, Nvml())
        self._log = log
        self._hand = Hand(self.shared)
        self._stuck: dict[str, Hand] = {}

    def look(self, patience_s: float = PATIENCE_S) -> None:
        """Ask for a reading and wait for it a moment. Never longer."""
        self._stuck = {card: hand for card, hand in self._stuck.items() if hand.is_alive()}
        if self._hand.is_busy:
            self._hand.wait(0)
        if self._hand.is_busy:
            self._replace_hand()
        if not self._hand.is_busy:
            self._hand.ask(self._stuck)
            self._hand.wait(patience_s)

    def _replace_hand(self) -> None:
        card = self._hand.let_go()
        if card is not None:
            self._log.error("GPU %s: a call into the driver hangs", card)
            self._stuck[card] = self._hand
            self._hand = Hand(self.shared)

    def hanging(self) -> dict[str, Hand]:
        """By card, DRIVER for none: the threads in a call that should have returned."""
        found = dict(self._stuck)
        if self._hand.hangs_s() >= STALE_S:
            found[self._hand.at] = self._hand
        return found

    def seen(self) -> dict[str, Seen]:
        return dict(self.shared.seen)

    @property
    def has_answered(self) -> bool:
        """A first reading is there, whatever it says."""
        return self.shared.is_read or bool(self._stuck)

    def why(self) -> str:
        """Why nothing can be read of any card; empty: it can."""
        hand = self.hanging().get(DRIVER)
        if hand is not None:
            return f"the driver has not answered for {hand.hangs_s():.0f} s"
        return self.shared.why


def is_uninterruptible(thread: threading.Thread) -> bool:
    """It sleeps in the kernel in a way that not even SIGKILL may end: to kill the process would
    leave it there half dead, with its lock and its socket, so that no other could begin."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "D"
