"""Tasks that write as fast as they can, on a real engine: each is stopped in time."""

import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import pytest

from procs.executor import disk_guard
from procs.executor.attempt import Attempt
from procs.executor.collect import disk_use_bytes
from procs.executor.disk_guard import DiskGuard, Full, Known, Room, is_due, written_bytes
from procs.executor.quota import Grant
from procs.executor.walk import MovedError
from shared import sentences
from shared.messages import TaskPhase
from shared.taskdir import GIB, MIB, OUTPUT
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

LIMIT_BYTES = 64 * MIB
MOST_BYTES = max(2 * LIMIT_BYTES, LIMIT_BYTES + GIB)
DEAF = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
ONE_FILE = DEAF + f"""
with open("/output/a", "wb", 0) as file:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for n in range({LIMIT_BYTES // MIB}): file.write(bytes({MIB}))
signal.pause()
"""
SEVERAL_FILES = DEAF + f"""
for part in range(3): os.fork()
n = 0
while n := n + 1:
    with open(f"/output/{{os.getpid()}}-{{n}}", "wb", 0) as file:
        for _ in range(16): file.write(bytes({MIB}))
"""
TINY_FILES = DEAF + """
for part in range(3): os.fork()
n = 0
while n := n + 1: os.close(os.open(f"/output/{os.getpid()}-{n}", os.O_CREAT | os.O_WRONLY))
"""
SPARSE_FILE = DEAF + f"""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for n in range(9):
    with open(f"/output/{{n}}", "wb") as file: file.truncate({LIMIT_BYTES // 8})
signal.pause()
"""
DEEP_FILES = DEAF + f"""
os.chdir("/output")
for n in range(1000):
    os.mkdir("d"); os.chdir("d")
n = 0
while n := n + 1:
    with open(str(n), "wb", 0) as file: file.write(bytes({MIB}))
"""


class Highest:
    """The most that was ever seen below a folder."""

    def __init__(self, folder: Path) -> None:
        self.bytes = 0
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            with suppress(OSError):  # it is removed
                self.bytes = max(self.bytes, disk_use_bytes(self._folder, 4 * MOST_BYTES))

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


@pytest.mark.docker
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("one", ONE_FILE),
        ("several", SEVERAL_FILES),
        ("tiny", TINY_FILES),
        ("sparse", SPARSE_FILE),
        ("deep", DEEP_FILES),
    ],
)
def test_a_task_that_writes_as_fast_as_it_can_is_stopped_in_time(
    executor: ExecutorAlone, name: str, code: str
) -> None:
    """It is deaf to SIGTERM, and its grace would be a minute: only a hard stop ends it so soon."""
    key = executor.assign(
        task("python3", "-c", code, name=name, disk_bytes=LIMIT_BYTES, stop_grace_s=60.0, cpus=2.0)
    )
    highest = Highest(executor.directory(key) / OUTPUT)
    try:
        report = executor.wait_report(key)
    finally:
        highest.close()
    assert (report.phase, report.exit_code) == ("out_of_disk", 137)
    assert "bytes of disk, its limit is" in report.error
    assert report.output_sha256 == ""
    assert LIMIT_BYTES <= highest.bytes <= MOST_BYTES
    print(f"{name}: {highest.bytes / MIB:.0f} MiB at most, limit {LIMIT_BYTES / MIB:.0f}")
    executor.wait_released(key)


@pytest.mark.docker
def test_its_grace_is_no_time_to_write(executor: ExecutorAlone) -> None:
    """It is told to end, and fills the disk in what time it is left."""
    code = f"""
import os, signal, threading
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
print("up", flush=True)
while not told.wait(0.1): pass
{SEVERAL_FILES}"""
    key = executor.assign(
        task("python3", "-c", code, name="grace", disk_bytes=LIMIT_BYTES, stop_grace_s=60.0)
    )
    executor.wait(lambda: b"up" in executor.output(key), "up")
    highest = Highest(executor.directory(key) / OUTPUT)
    try:
        executor.cancel(key)
        report = executor.wait_report(key)
    finally:
        highest.close()
    assert (report.phase, report.exit_code) == ("out_of_disk", 137)
    assert LIMIT_BYTES <= highest.bytes <= MOST_BYTES


@pytest.mark.docker
def test_a_wide_tree_keeps_nobody_waiting_and_its_use_is_shown(executor: ExecutorAlone) -> None:
    code = "import os, signal\nfor n in range(20000): os.mkdir(f'/output/{n}')\nsignal.pause()"
    wide = executor.assign(task("python3", "-c", code, name="wide", disk_bytes=GIB))
    quick = executor.assign(task("true", name="quick"))
    assert executor.wait_report(quick).phase == "succeeded"

    def all_seen() -> bool:
        held = executor.held(wide)
        return held is not None and held.use is not None and held.use.disk_bytes >= 20000 * 4096

    executor.wait(all_seen, "its use of disk")
    executor.cancel(wide)
    assert executor.wait_report(wide).phase == "cancelled"


FREE = Room(10 * GIB, 1000)


@pytest.mark.parametrize(
    ("after", "written"),
    [
        pytest.param(FREE, 0, id="quiet"),
        pytest.param(Room(9 * GIB, 1000), GIB, id="written"),
        pytest.param(Room(11 * GIB, 1000), 0, id="removed"),
        pytest.param(Room(10 * GIB, 990), 40960, id="empty files"),
        pytest.param(Room(11 * GIB, 990), 40960, id="removed by one, created by another"),
    ],
)
def test_how_much_was_written_at_most(after: Room, written: int) -> None:
    assert written_bytes(FREE, after) == written


@pytest.mark.parametrize(
    ("known", "due"),
    [
        pytest.param(Known(look_at_s=0.0), True, id="never looked at"),
        pytest.param(Known(look_at_s=105.0), False, id="quiet"),
        pytest.param(Known(look_at_s=100.0), True, id="its time has come"),
        pytest.param(Known(look_at_s=105.0, written_bytes=49), False, id="far from its limit"),
        pytest.param(Known(look_at_s=105.0, written_bytes=50), True, id="half of the rest"),
        pytest.param(Known(90, 5, 105.0), True, id="near its limit a little is enough"),
        pytest.param(Known(90, 5, 105.0, 100.1), False, id="looks may not take all time"),
        pytest.param(Known(90, 5, 105.0, is_looked_at=True), False, id="being looked at"),
    ],
)
def test_when_a_task_is_looked_at(known: Known, due: bool) -> None:
    assert is_due(known, 100, 100.0) is due


# ------------------------------------------------------------------ without an engine


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    (tmp_path / "t.1" / OUTPUT).mkdir(parents=True)
    return Attempt(
        spec=task("true"), directory=tmp_path / "t.1", grant=Grant(1.0, MIB, 10 * MIB, 8)
    )


def found(attempt: Attempt) -> Full:
    """What a guard says of a task at last, having ended it."""
    ended: SimpleQueue[tuple[Attempt, int]] = SimpleQueue()

    def end(whom: Attempt, which: int) -> bool:
        ended.put((whom, which))
        return True

    guard = DiskGuard(attempt.directory, end)
    guard.follow(attempt)
    try:
        assert select.select([guard.fileno()], [], [], 30.0)[0]
        assert ended.get(timeout=30.0) == (attempt, signal.SIGPWR)
        return next(guard.full())
    finally:
        guard.close()


def test_a_task_at_its_limit_is_told(attempt: Attempt) -> None:
    with (attempt.directory / OUTPUT / "a").open("wb") as file:
        file.truncate(10 * MIB)
    before_ns = time.monotonic_ns()
    full = found(attempt)
    assert (full.key, full.said.code) == (attempt.key, TaskPhase.OUT_OF_DISK)
    assert before_ns < full.at_ns < time.monotonic_ns()


def test_a_task_that_lets_nobody_look_is_told(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def moved(_: Path, __: int) -> int:
        looks.append(1)
        raise MovedError

    monkeypatch.setattr(disk_guard, "disk_use_bytes", moved)
    assert found(attempt).said.sentence is sentences.OUTPUT_MOVES
    assert len(looks) >= disk_guard.MOST_FAULTS


def test_what_was_counted_twice_while_it_moved_ends_no_task(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [11 * MIB, 9 * MIB, 11 * MIB, 12 * MIB]  # the first look is a mistake
    monkeypatch.setattr(disk_guard, "disk_use_bytes", lambda _, __: figures.pop(0))
    monkeypatch.setattr(disk_guard, "LOOK_S", 0.0)
    assert f"used {12 * MIB} bytes" in found(attempt).said.text


def test_an_error_in_its_threads_is_raised_in_the_loop(tmp_path: Path) -> None:
    guard = DiskGuard(tmp_path, lambda *_: False)
    guard._run(lambda: None)
    assert [*guard.full()] == []
    with pytest.raises(ZeroDivisionError):
        guard._run(lambda: [][1 // 0])
    with pytest.raises(ZeroDivisionError):
        next(guard.full())
