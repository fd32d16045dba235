"""When the watchdog asks supervisord, which wakes it; whom it kills; how it hears beats."""

import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from procs.watchdog.core import SHORT_LIFE_S, SILENT_TICKS
from procs.watchdog.main import EVENTS_PER_BEAT, Watchdog
from procs.watchdog.pids import born_s, since_s
from procs.watchdog.supervisord import Supervisord
from shared.bus import Beats, Bus
from shared.messages import TaskState, VpnState
from shared.service import Context
from shared.settings import load
from tests.fakes.supervised import until
from tests.fakes.supervisord import FakeSupervisord

LIST, KILL = "supervisor.getAllProcessInfo", "supervisor.signalProcess"
EVENT = b"ver:3.0 serial:1 len:3\na:1"


def children() -> set[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in path.read_text().split()}


@contextmanager
def watchdog(home: Path, pids: dict[str, int]) -> Iterator[tuple[Watchdog, FakeSupervisord, int]]:
    """A watchdog whose supervisord is a fake; the third is where its events are written."""
    door = FakeSupervisord(home / "door.sock", pids)
    bus = Bus(home, "watchdog")
    settings = load({"HIVEMIND_HOME": str(home)}, home)
    context = Context("watchdog", settings, bus, threading.Event(), logging.getLogger("test"))
    events_read, events = os.pipe()
    answers_read, answers = os.pipe()
    stdin = os.dup(0)
    os.dup2(events_read, 0)
    before = children()
    guard = Watchdog(context, Supervisord(f"unix://{home}/door.sock"), answers)
    (waker,) = children() - before
    try:
        yield guard, door, events
    finally:
        signal.alarm(0)
        guard.close()
        os.waitpid(waker, 0)
        os.dup2(stdin, 0)
        for descriptor in (events_read, events, answers_read, answers, stdin):
            os.close(descriptor)
        bus.close()
        door.close()


@contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(guard: Watchdog) -> set[int]:
    return set(select.select(list(guard.descriptors()), [], [], 5)[0])


def test_a_death_after_a_while_asks_supervisord_at_once(home: Path) -> None:
    with child() as process, watchdog(home, {"vpn": process.pid}) as (guard, door, _):
        until(lambda: since_s(born_s(process.pid)) > SHORT_LIFE_S or None, "it has lived a while")
        guard.beat(time.monotonic())
        assert door.asked == [LIST]
        process.kill()
        guard.wake(ready(guard), time.monotonic())
        assert door.asked == [LIST, LIST]


def test_a_death_after_a_short_life_does_not(home: Path) -> None:
    with child() as process, watchdog(home, {"vpn": process.pid}) as (guard, door, _):
        guard.beat(time.monotonic())
        process.kill()
        found = ready(guard)
        assert found
        guard.wake(found, time.monotonic())
        assert door.asked == [LIST]


def test_an_event_asks_and_too_many_wait_for_the_next_beat(home: Path) -> None:
    with watchdog(home, {}) as (guard, door, events):
        guard.beat(time.monotonic())
        for count in range(1, EVENTS_PER_BEAT + 1):
            assert 0 in guard.descriptors()
            os.write(events, EVENT)
            guard.wake(ready(guard), time.monotonic())
            assert door.asked == [LIST] * (1 + count)
        assert 0 not in guard.descriptors()
        guard.beat(time.monotonic())
        assert 0 in guard.descriptors()


def test_only_a_silent_process_that_should_beat_is_killed(home: Path) -> None:
    """`sidecar` is a program of the owner's: it has no topic, so nothing is expected of it."""
    with child() as process:
        pids = {"vpn": process.pid, "sidecar": process.pid}
        with watchdog(home, pids) as (guard, door, _):
            for tick in range(SILENT_TICKS):
                guard.beat(100.0 + tick)
            assert KILL not in door.asked
            guard.beat(100.0 + SILENT_TICKS)
            assert door.asked.count(KILL) == 1


def test_beats_are_heard_from_all_and_the_newest_counts(home: Path) -> None:
    own, vpn = Bus(home, "watchdog"), Bus(home, "vpn")
    beats = Beats(own)
    beats.take()  # connects to what is there; the executor comes later
    executor = Bus(home, "executor")
    heard: dict[str, float] = {}

    def hear() -> bool | None:
        executor.publish(TaskState(at_s=4.0, synced=False))
        for at_s in (6.0, 7.0, 8.0):
            vpn.publish(VpnState(at_s=at_s))
        for bus in (vpn, executor):
            bus.drain()
        for source, at_s in beats.take().items():
            heard[source] = max(at_s, heard.get(source, at_s))
        return heard == {"vpn": 8.0, "executor": 4.0} or None

    until(hear, "both are heard, the unsynced one too")
    assert beats.take() == {}
    for bus in (own, vpn, executor):
        bus.close()
