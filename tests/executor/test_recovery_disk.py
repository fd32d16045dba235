"""What can break on disk under a task, on a real engine: no room, files that were cut, forged or
deleted, and a machine that was started anew."""

import os
import sqlite3
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from procs.executor.notes import read_run
from shared.messages import WantedTask
from shared.taskdir import ARCHIVE, LOG, MIB, RUN, Report, Spec, TaskKey
from shared.tasklog import LogReader
from tests.fakes.engine_proxy import EngineProxy, Moment, Trap
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

ASLEEP = ("sh", "-c", "echo up; exec sleep 300")
DISK_BYTES = 320 * MIB  # of which 256 are the floor below which no task is taken
COUNT = "i=0; while [ $i -lt {} ]; do echo $i; sleep 0.1; i=$((i+1)); done; exit 7"


def counted(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(count))


def is_up(executor: ExecutorAlone, key: TaskKey) -> None:
    executor.wait(lambda: b"up" in executor.output(key), f"{key} up")


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


# ------------------------------------------------------------------ a full disk


class SmallDisk:
    """An executor whose home is a small disk of its own."""

    def __init__(self, engine: PrivateEngine) -> None:
        self._disk = Path(tempfile.mkdtemp(prefix="hd-", dir="/tmp"))
        options = f"size={DISK_BYTES},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", self._disk], check=True)
        self._ballast = self._disk / "ballast"
        self.proxy = EngineProxy(self._disk / "p.sock", engine.folder / "docker.sock")
        self.executor = ExecutorAlone(self.proxy.host, home=self._disk / "home").start()

    def fill(self) -> None:
        """To the last byte: others may still free some, or take it."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(MIB))

    def free(self) -> None:
        self._ballast.unlink()

    def is_full(self) -> bool:
        state = self.executor.state()
        return state is not None and state.capacity.disk_full

    def detail(self, key: TaskKey) -> str:
        held = self.executor.held(key)
        return held.detail if held else ""

    def assign(self, name: str, code: str) -> TaskKey:
        return self.executor.assign(self.spec(name, code))

    @staticmethod
    def spec(name: str, code: str) -> Spec:
        return task("sh", "-c", code, name=name, disk_bytes=16 * MIB)

    def close(self) -> None:
        self.executor.stop()
        self.proxy.close()
        subprocess.run(["umount", self._disk], check=True)
        self._disk.rmdir()


@pytest.fixture(scope="module")
def small(engine: PrivateEngine) -> Iterator[SmallDisk]:
    assert engine.task_image
    disk = SmallDisk(engine)
    try:
        yield disk
    finally:
        disk.close()


def is_in_history(executor: ExecutorAlone, key: TaskKey) -> None:
    """The database has the task's end."""
    uri = f"file:{executor.home}/lib/executor.db?mode=ro"
    query = "SELECT phase, exit_code FROM tasks WHERE task_id = ?"

    def found() -> bool:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            row: tuple[str, int] | None = database.execute(query, (key.task_id,)).fetchone()
            return row == ("failed", 7)

    executor.wait(found, "its end in the history", 20)


def test_a_disk_that_fills_under_a_task_changes_nothing_of_its_end(small: SmallDisk) -> None:
    """Full while it runs, ends and is collected; only what it said meanwhile may be lost."""
    code = "cd /output; head -c 500000 /dev/zero >zeros; touch wait; echo up; {}; seq 100; exit 7"
    key = small.assign("filled", code.format("while [ -e wait ]; do sleep 0.05; done"))
    is_up(small.executor, key)
    pid = small.executor.pid()
    small.fill()
    small.executor.wait(small.is_full, "known to be full")
    (small.executor.directory(key) / "output" / "wait").unlink()
    small.executor.wait(lambda: "collect: " in small.detail(key), "a first try to collect it")
    small.free()
    report = small.executor.wait_report(key)
    assert (report.phase, report.exit_code, small.executor.pid()) == ("failed", 7, pid)
    with tarfile.open(small.executor.directory(key) / ARCHIVE) as archive:
        assert [(one.name, one.size) for one in archive] == [("zeros", 500_000)]
    ended = read_run(small.executor.directory(key)).ended
    assert ended is not None
    whole = b"up\n" + b"".join(b"%d\n" % n for n in range(1, 101))
    assert len(small.executor.output(key)) + ended.log_lost_bytes == len(whole)
    assert whole.startswith(small.executor.output(key))
    is_in_history(small.executor, key)


def test_a_task_waits_for_room_and_then_runs(small: SmallDisk) -> None:
    key = small.executor.assign(small.spec("patient", COUNT.format(3)), want=False)
    small.fill()
    small.executor.wanted[key] = WantedTask(task_id=key.task_id, attempt=key.attempt)
    small.executor.wait(lambda: "disk" in small.detail(key), "what it waits for")
    small.free()
    report = small.executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("failed", 7)
    assert small.executor.output(key) == counted(3)


def test_a_disk_that_fills_while_it_is_prepared_is_waited_for(small: SmallDisk) -> None:
    trap = small.proxy.set(Trap("GET /images/", Moment.BEFORE, small.fill, passes=True))
    key = small.assign("unprepared", COUNT.format(3))
    small.executor.wait(trap.sprung.is_set, "full")
    small.executor.wait(lambda: "waiting for room" in small.detail(key), "what it waits for")
    small.free()
    report = small.executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("failed", 7)
    assert small.executor.output(key) == counted(3)


# ------------------------------------------------------------------ databases


def cut(database: Path) -> None:
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    os.truncate(database, database.stat().st_size // 2)


def delete(database: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("harm", "lives"),
    [
        pytest.param(cut, True, id="cut under the executor"),
        pytest.param(delete, False, id="deleted while it is down"),
    ],
)
def test_a_database_that_is_lost_is_built_again(
    executor: ExecutorAlone, harm: Callable[[Path], None], lives: bool
) -> None:
    name = f"database-{harm.__name__}-{lives}"
    key = executor.assign(task("sh", "-c", f"echo up; {COUNT.format(10)}", name=name))
    is_up(executor, key)
    if not lives:
        executor.halt()
    harm(executor.home / "lib" / "executor.db")
    if lives:
        executor.kill()
    else:
        executor.start()
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("failed", 7)
    assert executor.output(key) == b"up\n" + counted(10)
    is_in_history(executor, key)


# ------------------------------------------------------------------ the keeper's files


def torn(record: Path) -> None:
    os.truncate(record, 20)


def emptied(record: Path) -> None:
    os.truncate(record, 0)


def gone(record: Path) -> None:
    record.unlink()


def garbled(record: Path) -> None:
    record.write_bytes(os.urandom(100_000))


def without_an_end(record: Path) -> None:
    record.write_bytes(record.read_bytes().splitlines(keepends=True)[0] + b"\xff" * 100_000)


def absurd(record: Path) -> None:
    most = 2**63 - 1
    record.write_bytes(
        record.read_bytes().splitlines(keepends=True)[0]
        + b"ended unix_ns=0 monotonic_ns=0 code=9 signal=0 max_rss_bytes=%d memory_peak_bytes=%d"
        b" cpu_ns=%d oom_kills=%d log_dropped_bytes=%d log_lost_bytes=%d\n" % ((most,) * 6)
    )


def after_harm(
    executor: ExecutorAlone, name: str, file: str, harm: Callable[[Path], None]
) -> tuple[TaskKey, Report]:
    """A keeper is killed, and its file harmed, while nobody looks."""
    key = executor.assign(task(*ASLEEP, name=name))
    is_up(executor, key)
    container = executor.inspect(key)["Id"]
    executor.halt()
    executor.docker.kill(container, "SIGKILL")
    executor.docker.wait(container)
    harm(executor.directory(key) / file)
    executor.start()
    return key, executor.wait_report(key)


@pytest.mark.parametrize(
    ("harm", "cause", "code", "words"),
    [
        (torn, "node", -1, "it ran, and its record"),
        (emptied, "node", -1, "it ran, and its record"),
        (without_an_end, "exit", 137, "keeper"),
        (absurd, "exit", 9, "exited 9"),
    ],
)
def test_a_run_record_that_was_harmed_never_means_a_second_run(
    executor: ExecutorAlone, harm: Callable[[Path], None], cause: str, code: int, words: str
) -> None:
    key, report = after_harm(executor, harm.__name__.replace("_", "-"), RUN, harm)
    assert (report.phase, report.cause, report.exit_code) == ("failed", cause, code)
    assert words in report.error
    assert report.run_s >= 0
    assert 0 <= report.cpu_pct_average <= 100
    assert 0 <= report.memory_pct_average <= 100
    assert report.finished_unix_s >= (report.started_unix_s or 0)
    assert executor.output(key) == b"up\n"


def test_without_history_too_a_lost_record_never_means_a_second_run(
    executor: ExecutorAlone,
) -> None:
    def both(record: Path) -> None:
        gone(record)
        delete(executor.home / "lib" / "executor.db")

    key, report = after_harm(executor, "both", RUN, both)
    assert (report.phase, report.cause, report.exit_code) == ("failed", "node", -1)
    assert executor.output(key) == b"up\n"


@pytest.mark.parametrize("harm", [torn, garbled])
def test_a_log_that_was_harmed_harms_no_result(
    executor: ExecutorAlone, harm: Callable[[Path], None]
) -> None:
    key, report = after_harm(executor, f"log-{harm.__name__}", LOG, harm)
    assert (report.phase, report.cause, report.exit_code) == ("failed", "exit", 137)
    reader = LogReader(executor.directory(key) / LOG)
    assert reader.read() == []
    reader.close()
    executor.wait_released(key)


# ------------------------------------------------------------------ the machine


@contextmanager
def another_boot(executor: ExecutorAlone) -> Iterator[None]:
    """The executor in a mount namespace where the kernel's boot id is another one."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        mount = f"mount --bind {file.name} /proc/sys/kernel/random/boot_id"
        within = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
        executor.start(*within, f'{mount} && exec "$@"', "sh")
        yield
        executor.halt()
    executor.start()


@pytest.mark.parametrize("removed", [True, False], ids=["container gone", "container dead"])
def test_a_machine_that_was_started_anew_interrupts_its_tasks(
    executor: ExecutorAlone, removed: bool
) -> None:
    key = executor.assign(task(*ASLEEP, name=f"boot-{removed}", timeout_s=2.0))
    is_up(executor, key)
    container = executor.inspect(key)["Id"]
    executor.halt()
    executor.docker.kill(container, "SIGKILL")
    executor.docker.wait(container)
    if removed:
        executor.docker.remove_container(container)
    started = read_run(executor.directory(key)).started
    assert started is not None
    over_s = started.monotonic_ns / 1e9 + 2.0  # another boot's clock ends no task
    executor.wait(lambda: time.monotonic() > over_s, "its time is over")
    with another_boot(executor):
        report = executor.wait_report(key)
        assert (report.phase, report.exit_code, report.cause) == ("failed", 137, "interrupted")
        assert "the machine was started anew" in report.error
        assert executor.output(key) == b"up\n"


def test_a_task_that_the_going_machine_ended_in_order_is_interrupted_too(
    executor: ExecutorAlone,
) -> None:
    """The engine tells each container to end when the machine goes down."""
    key = executor.assign(task(*ASLEEP, name="boot-term"))
    is_up(executor, key)
    container = executor.inspect(key)["Id"]
    executor.halt()
    executor.docker.stop(container)
    with another_boot(executor):
        report = executor.wait_report(key)
        assert (report.phase, report.exit_code, report.cause) == ("failed", 143, "interrupted")
