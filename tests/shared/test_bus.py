"""The bus on real sockets, with real processes that are killed and stopped."""

import asyncio
import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from shared import bus as bus_module
from shared import codec
from shared.bus import Bus, BusError, Inbox, LoopWatch, Tap, bus_directory, take_lock
from shared.messages import (
    Engine,
    GpuLoad,
    HostLoad,
    LinkState,
    Message,
    OwnerWant,
    ProcessState,
    TaskState,
    TaskWant,
    WantedTask,
)
from tests.shared.polling import descriptor_count, until

ROOT = Path(__file__).parents[2]
Open = Callable[..., Bus]

# A process that holds the bus as argv[1], says so, publishes a STATE of argv[3] bytes and waits.
PUBLISHER = """
import sys, time
from pathlib import Path
from shared.bus import Bus
from shared.messages import TaskState, Engine
bus = Bus(Path(sys.argv[2]), sys.argv[1])
bus.publish(TaskState(at_s=time.monotonic(), engine=Engine(detail="x" * int(sys.argv[3]))))
print("ready", flush=True)
while True:
    bus.wait(60)
"""
READER = """
import sys
from pathlib import Path
from shared.bus import Bus
bus = Bus(Path(sys.argv[2]), sys.argv[1], ["task.state"])
while not bus.inbox.latest["task.state"]:
    bus.wait(1)
print("ready", flush=True)
while True:
    bus.wait(60)
"""


@pytest.fixture
def opened(home: Path) -> Iterator[Open]:
    """Opens buses by name; closes them in the end."""
    with ExitStack() as stack:

        def open_bus(name: str, *reads: str) -> Bus:
            bus = Bus(home, name, reads)
            stack.callback(bus.close)
            return bus

        yield open_bus


@pytest.fixture
def started(home: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts one of the programs above and waits until it is ready; kills it in the end."""
    with ExitStack() as stack:

        def start(program: str, *arguments: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-c", program, arguments[0], str(home), *arguments[1:]],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, process)
            return process

        yield start


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def ready(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout
    return process.stdout.readline() == "ready\n"


def heard(reader: Bus, kind: type[Message], *others: Bus) -> Message:
    """The newest message of `kind`, as soon as there is one; `others` serve subscriptions."""

    def look() -> Message | None:
        for bus in others:
            bus.drain()
        reader.wait(0.01)
        topic = str(kind.__struct_config__.tag)
        return max(reader.inbox.latest[topic].values(), key=lambda m: m.at_s, default=None)

    return until(look, f"a {kind.__name__}")


# ------------------------------------------------------------------ real sockets


def test_each_new_subscriber_gets_the_last_state(opened: Open) -> None:
    publisher = opened("executor")
    publisher.publish(TaskState(at_s=1.0))
    publisher.publish(TaskState(at_s=2.0))
    for name in ("web", "master_link", "vpn"):
        assert heard(opened(name, "task.state"), TaskState, publisher) == TaskState(at_s=2.0)


def test_a_subscriber_may_come_first(opened: Open) -> None:
    reader = opened("web", "task.state")
    publisher = opened("executor")
    publisher.publish(TaskState(at_s=1.0))
    assert heard(reader, TaskState, publisher) == TaskState(at_s=1.0)


def test_only_the_topics_that_are_read_arrive(opened: Open) -> None:
    publisher = opened("master_link")
    publisher.publish(TaskWant(at_s=1.0))
    publisher.publish(LinkState(at_s=1.0))
    reader = opened("executor", "task.want")
    heard(reader, TaskWant, publisher)
    assert list(reader.inbox.latest) == ["task.want"]
    assert reader.inbox.dropped == 0


def test_a_foreign_topic_is_refused_on_publish(opened: Open) -> None:
    with pytest.raises(BusError, match=r"^executor may not publish task\.want$"):
        opened("executor").publish(TaskWant(at_s=1.0))


def test_a_foreign_topic_is_dropped_on_receive(home: Path, opened: Open) -> None:
    """A process that writes to its socket whatever it likes still speaks for itself alone."""
    reader = opened("executor", "task.want", "host.load")
    want = codec.encode(TaskWant(at_s=9.0, tasks=(WantedTask(task_id="x", attempt=1),)))
    load = codec.encode(HostLoad(at_s=1.0))
    context = zmq.Context()
    rogue = context.socket(zmq.XPUB)
    try:
        rogue.bind(f"ipc://{bus_directory(home)}/monitor@host.sock")
        reader.connect_new()
        until(lambda: rogue.poll(10), "subscriptions")
        for parts in (
            [b"host.load", b"monitor@other", load],
            [b"host.load", b"monitor@host", want],
            [b"host.load", b"master_link", want],
            [b"host.load", b"master_link@x", want],
            [b"host.load", b"monitor@host", b"\xc1 garbage"],
            [b"host.load", b"\xff", load],
            [b"host.load"],
            [b"host.load", b"monitor@host", load, b"more"],
        ):
            rogue.send_multipart(parts)
        until(lambda: reader.wait(0.01) or reader.inbox.dropped == 8, "eight dropped")
        rogue.send_multipart([b"host.load", b"monitor@host", load])
        assert heard(reader, HostLoad) == HostLoad(at_s=1.0)
        assert reader.inbox.latest["task.want"] == {}
        assert list(reader.inbox.latest["host.load"]) == ["monitor@host"]
    finally:
        context.destroy(linger=0)


def test_what_subscribers_send_upstream_is_ignored(home: Path, opened: Open) -> None:
    publisher = opened("executor")
    publisher.publish(TaskState(at_s=1.0))
    context = zmq.Context()
    rogue = context.socket(zmq.XSUB)
    try:
        rogue.connect(f"ipc://{bus_directory(home)}/executor.sock")
        for raw in (b"", b"\x00", b"garbage", b"\x02" * 1000, b"\x01", b"\x01task.state"):
            rogue.send(raw)
        until(lambda: publisher.drain() or rogue.poll(10), "the replay")
        assert codec.decode(rogue.recv_multipart()[2]) == TaskState(at_s=1.0)
    finally:
        context.destroy(linger=0)


def test_monitors_are_found_that_appear_later(opened: Open) -> None:
    reader = opened("web", "host.load", "gpu.load")
    for name, message in (
        ("monitor@host", HostLoad(at_s=1.0)),
        ("monitor@gpu0", GpuLoad(at_s=1.0, gpu_set="0")),
        ("monitor@gpu1", GpuLoad(at_s=2.0, gpu_set="1")),
    ):
        monitor = opened(name)
        monitor.publish(message)
        reader.connect_new()
        until(
            lambda m=monitor, n=name, t=message.topic: (  # type: ignore[misc]
                m.drain(), reader.wait(0.01), n in reader.inbox.latest[t]
            )[2],
            f"{name} is heard",
        )  # fmt: skip
    assert set(reader.inbox.all_fresh(GpuLoad, 2.5)) == {"monitor@gpu0", "monitor@gpu1"}
    assert set(reader.inbox.all_fresh(HostLoad, 2.5)) == {"monitor@host"}


def test_descriptors_that_are_readable_end_the_wait(opened: Open) -> None:
    bus = opened("vpn")
    (read, write), (quiet, other) = os.pipe(), os.pipe()
    try:
        assert bus.wait(0.0, [read, quiet]) == set()
        os.write(write, b"x")
        assert bus.wait(60.0, [read, quiet]) == {read}
    finally:
        for descriptor in (read, write, quiet, other):
            os.close(descriptor)


def test_an_event_loop_hears_by_the_descriptors_alone(opened: Open) -> None:
    """Watch `filenos()`; drain what woke, and publish in between as one likes."""
    publisher, reader = opened("executor"), opened("web", "task.state")
    reader.drain()
    for beat in range(1, 200):
        publisher.publish(TaskState(at_s=float(beat)))
        while not any(m.at_s == beat for m in reader.inbox.latest["task.state"].values()):
            reader.publish(OwnerWant(at_s=float(beat)))
            readable, _, _ = select.select([*publisher.filenos(), *reader.filenos()], [], [], 20)
            assert readable, "woken within 20 s"
            for bus, descriptor in itertools.product((publisher, reader), readable):
                if descriptor in bus.filenos():
                    bus.drain(descriptor)


def test_an_event_loop_that_rests_hears_with_its_beats_alone(opened: Open) -> None:
    publisher, reader = opened("executor"), opened("web", "task.state")

    async def scenario() -> None:
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        watch = LoopWatch(reader, loop, heard.set)
        try:
            watch.beat(rests=True)
            await heard.wait()
            assert not any(loop.remove_reader(descriptor) for descriptor in reader.filenos())
            publisher.publish(TaskState(at_s=1.0))
            async with asyncio.timeout(20):
                while not reader.inbox.latest["task.state"]:
                    publisher.drain()  # its subscription may have come only now
                    watch.beat(rests=True)
                    await asyncio.sleep(0)
            watch.beat()
            publisher.publish(TaskState(at_s=2.0))
            async with asyncio.timeout(20):
                while reader.inbox.latest["task.state"]["executor"].at_s < 2.0:
                    heard.clear()
                    await heard.wait()
        finally:
            watch.close()

    asyncio.run(scenario())


def test_closing_leaves_no_descriptor(home: Path) -> None:
    before = descriptor_count()
    for _ in range(3):
        bus = Bus(home, "web", ["task.state", "host.load"])
        bus.wait(0.0)
        bus.close()
    assert descriptor_count() == before


# ------------------------------------------------------------------ the lock, the path


def test_a_second_holder_is_refused_and_steals_nothing(
    home: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "LOCK_WAIT_S", 0.1)
    first = opened("executor")
    first.publish(TaskState(at_s=1.0))
    before = descriptor_count()
    with pytest.raises(BusError, match=r"another process holds .*executor\.lock"):
        Bus(home, "executor")
    assert descriptor_count() == before
    assert heard(opened("web", "task.state"), TaskState, first) == TaskState(at_s=1.0)


def test_a_killed_holder_frees_its_name(
    home: Path, opened: Open, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    holder = started(PUBLISHER, "executor", "1")
    assert ready(holder)
    lock = bus_directory(home) / "executor.lock"
    with pytest.raises(BusError):
        take_lock(lock, wait_s=0.0)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    opened("executor").publish(TaskState(at_s=1.0))


def test_the_next_holder_waits_for_the_last(
    home: Path, opened: Open, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    first = Bus(home, "executor")
    second = started(PUBLISHER, "executor", "1")
    reader = opened("web", "task.state")
    assert second.stdout
    assert not select.select([second.stdout], [], [], 0.5)[0]
    first.close()
    assert ready(second)
    heard(reader, TaskState)


def test_a_path_too_long_is_one_clear_line(tmp_path: Path) -> None:
    home = tmp_path / ("d" * 100)
    bus_directory(home).mkdir(parents=True)
    before = descriptor_count()
    with pytest.raises(BusError) as caught:
        Bus(home, "web")
    assert str(caught.value).endswith("set HIVEMIND_HOME to a shorter path")
    assert "\n" not in str(caught.value)
    assert descriptor_count() == before


def test_the_longest_path_that_is_allowed_works(home: Path) -> None:
    fill = bus_module.MAX_SOCKET_PATH - len(str(home / "x" / "run" / "bus" / "executor.sock"))
    longest = home / ("x" * (fill + 1))
    bus_directory(longest).mkdir(parents=True)
    publisher, reader = Bus(longest, "executor"), Bus(longest, "web", ["task.state"])
    try:
        publisher.publish(TaskState(at_s=1.0))
        heard(reader, TaskState, publisher)
    finally:
        publisher.close()
        reader.close()


# ------------------------------------------------------------------ processes that die or stop


def test_a_publisher_that_is_killed_and_restarted_is_heard_again(
    opened: Open, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    reader = opened("web", "task.state")
    first = started(PUBLISHER, "executor", "1")
    assert ready(first)
    old = heard(reader, TaskState)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert ready(started(PUBLISHER, "executor", "1"))
    bound_s = time.monotonic()
    until(lambda: reader.wait(0.01) or heard(reader, TaskState).at_s > old.at_s, "the new state")
    print(f"state of a restarted publisher after {1000 * (time.monotonic() - bound_s):.0f} ms")


def test_a_stopped_reader_costs_its_publisher_bounded_memory(
    opened: Open, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    publisher = opened("executor")
    publisher.publish(TaskState(at_s=0.0))
    reader = started(READER, "web")
    until(lambda: publisher.wait(0.01) or _readable(reader), "the reader is there")
    assert ready(reader)
    reader.send_signal(signal.SIGSTOP)
    frames = 100 * 1024
    before = _rss_bytes()
    for beat in range(1, 2001):  # 200 MB
        publisher.publish(_state_of(frames, float(beat)))
    grown = _rss_bytes() - before
    assert grown < 3 * bus_module.SEND_HIGH_WATER * frames, f"{grown >> 20} MiB"


def _readable(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout
    return bool(select.select([process.stdout], [], [], 0)[0])


def _state_of(size_bytes: int, at_s: float) -> TaskState:
    return TaskState(at_s=at_s, engine=Engine(detail="x" * size_bytes))


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# ------------------------------------------------------------------ the inbox, without I/O


def frames_of(message: Message, source: str) -> list[bytes]:
    return [message.topic.encode(), source.encode(), codec.encode(message)]


def test_newest_is_by_the_publishers_clock_not_by_arrival() -> None:
    inbox = Inbox(["task.state"])
    new, old = TaskState(at_s=5.0), TaskState(at_s=4.0)
    assert inbox.take([frames_of(new, "executor")])
    assert not inbox.take([frames_of(old, "executor")])
    assert inbox.fresh(TaskState, 5.5) == new


def test_of_two_with_the_same_time_the_later_arrival_counts() -> None:
    inbox = Inbox(["process.state"])
    first, second = ProcessState(at_s=5.0), ProcessState(at_s=5.0, alerts=("web",))
    inbox.take([frames_of(first, "watchdog"), frames_of(second, "watchdog")])
    assert inbox.fresh(ProcessState, 5.5) == second


@pytest.mark.parametrize(
    ("now_s", "is_news"),
    [
        pytest.param(10.0, True, id="at once"),
        pytest.param(12.999, True, id="before the third missed beat"),
        pytest.param(13.0, False, id="three missed beats"),
        pytest.param(1000.0, False, id="long ago"),
    ],
)
def test_stale_at_three_missed_beats_of_the_publishers_clock(now_s: float, is_news: bool) -> None:
    inbox = Inbox(["task.state"])
    inbox.take([frames_of(TaskState(at_s=10.0), "executor")])
    assert (inbox.fresh(TaskState, now_s) is not None) is is_news
    assert bool(inbox.all_fresh(TaskState, now_s)) is is_news


def test_unsynced_is_no_news_and_takes_back_what_was() -> None:
    inbox = Inbox(["task.want"])
    inbox.take([frames_of(TaskWant(at_s=10.0), "master_link")])
    assert inbox.fresh(TaskWant, 10.5) is not None
    inbox.take([frames_of(TaskWant(at_s=11.0, synced=False), "master_link")])
    assert inbox.fresh(TaskWant, 11.0) is None


def test_silence_is_no_news() -> None:
    assert Inbox(["task.want"]).fresh(TaskWant, 0.0) is None


def test_the_newest_of_several_sources_or_the_one_that_is_named() -> None:
    inbox = Inbox(["gpu.load"])
    older, newer = GpuLoad(at_s=1.0, gpu_set="0"), GpuLoad(at_s=2.0, gpu_set="1")
    inbox.take([frames_of(newer, "monitor@gpu1"), frames_of(older, "monitor@gpu0")])
    assert inbox.fresh(GpuLoad, 2.5) == newer
    assert inbox.fresh(GpuLoad, 2.5, "monitor@gpu0") == older
    assert inbox.fresh(GpuLoad, 2.5, "monitor@gpu7") is None


# ------------------------------------------------------------------ the tap


def test_the_tap_hears_all_and_skips_what_it_can_not_read(home: Path, opened: Open) -> None:
    publisher = opened("executor")
    publisher.publish(TaskState(at_s=1.0))
    tap = Tap(home)
    context = zmq.Context()
    rogue = context.socket(zmq.XPUB)
    try:
        until(lambda: publisher.drain() or tap.next(0.01), "the state")
        rogue.bind(f"ipc://{bus_directory(home)}/later.sock")
        until(lambda: tap.next(0.0) or rogue.poll(10), "the tap finds a later socket")
        rogue.send_multipart([b"x.y", b"later", b"\xc1"])
        rogue.send_multipart([b"x.y"])
        rogue.send_multipart(frames_of(LinkState(at_s=3.0), "later"))
        assert until(lambda: tap.next(0.1), "a message") == ("later", LinkState(at_s=3.0))
    finally:
        tap.close()
        context.destroy(linger=0)
