"""Tasks in gVisor: what is promised of them in runc holds there too, and a hostile one reaches
nothing but its own sandbox. On an engine of its own, which knows the runtime.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executor.hostile_kit import Bombed, attack_all, outside, own, processes_left, table
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="gVisor's runsc is not installed"),
]
WRAPPER = "#!/bin/sh\nexec runsc --network=none \"$@\"\n"  # with one it asks for a namespace
OWN_KERNEL = {  # what they get is a part of the sandbox's own kernel, and nothing of the host's
    "make_device", "priority", "user_namespace", "namespaces", "kernel_memory", "devices",
}  # fmt: skip
OWN_KEEPER = {"trace", "keeper_descriptors", "kill_all"}  # it knows no dumpable: only its own end
QUICK_BOMBS = ("fork_bomb", "memory_bomb", "output_bomb", "long_line", "double_fork", "deaf")


@pytest.fixture(scope="module")
def gvisor(engine: PrivateEngine) -> Iterator[PrivateEngine]:
    own = PrivateEngine(Path(tempfile.mkdtemp(prefix="hme-", dir="/tmp")))
    wrapper = own.folder / "runsc"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    try:
        own.start("--add-runtime", f"runsc={wrapper}")
        own.take_task_image(engine)
        yield own
    finally:
        own.stop("--purge")


@pytest.fixture(scope="module")
def executor(gvisor: PrivateEngine) -> Iterator[ExecutorAlone]:
    alone = ExecutorAlone(gvisor.host, SANDBOX="runsc").start()
    yield alone
    alone.stop()


def test_a_task_runs_in_it_and_nothing_is_left(executor: ExecutorAlone) -> None:
    code = "uname -r; echo $HIDDEN | wc -c; seq 100000 | tee /output/x >&2; exit 3"
    key = executor.assign(task("sh", "-c", code, name="plain"), secrets={"HIDDEN": "12345"})
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code, report.runtime) == ("failed", 3, "runsc")
    kernel, length = executor.output(key).split()
    assert kernel.decode() != os.uname().release
    assert length == b"6"
    numbers = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
    assert executor.output(key, 2) == numbers
    assert report.output_files == 1
    executor.wait_released(key)
    assert executor.containers() == []


def test_it_may_end_in_order_when_it_is_stopped(executor: ExecutorAlone) -> None:
    code = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    key = executor.assign(task("sh", "-c", code, name="stopped-in-order"))
    executor.wait(lambda: b"up" in executor.output(key), "up")
    executor.cancel(key)
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("cancelled", 9)
    assert executor.output(key) == b"up\nbye\n"


def test_the_engine_goes_and_comes_back_under_it(
    gvisor: PrivateEngine, executor: ExecutorAlone
) -> None:
    code = "for i in 0 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.3; done; exit 5"
    key = executor.assign(task("sh", "-c", code, name="engine"))
    executor.wait_phase(key, "running")
    gvisor.kill()
    executor.wait(lambda: not executor.available(), "the engine known to be away")
    gvisor.start("--add-runtime", f"runsc={gvisor.folder}/runsc")
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("failed", 5)
    assert executor.output(key) == b"".join(b"%d\n" % i for i in range(10))
    executor.wait(executor.available, "the engine known to be back")


def test_a_hostile_task_reaches_only_its_own_sandbox(executor: ExecutorAlone) -> None:
    with outside(executor, "beside") as around:
        before = around.state()
        rows = attack_all(executor, around.targets, but=("kill_all",))
        print(f"\n{table(rows)}")
        assert around.state() == before
    assert {row.name for row in rows if not row.blocked} <= OWN_KERNEL | OWN_KEEPER
    for path in executor.home.rglob("*"):
        mode = path.lstat().st_mode
        assert not stat.S_ISCHR(mode) | stat.S_ISBLK(mode), path


def test_bombs_harm_only_their_own_tasks(executor: ExecutorAlone) -> None:
    with outside(executor, "beside-bombs") as around:
        before = around.state()
        bombed = Bombed(executor, QUICK_BOMBS)
        print(f"\n{table(bombed.rows())}")
        assert around.state() == before
    assert {name: bombed.faults(name) for name in QUICK_BOMBS} == {n: [] for n in QUICK_BOMBS}
    executor.wanted.clear()
    executor.wait(lambda: executor.containers() == [], "no container left")
    assert processes_left() == []


def test_killing_its_keeper_it_ends_itself(executor: ExecutorAlone) -> None:
    report = executor.wait_report(executor.assign(task("sh", "-c", "kill -9 1; sleep 300")))
    assert (report.phase, report.cause) == ("failed", "exit")


def test_an_engine_that_does_not_know_it_gets_no_task(engine: PrivateEngine) -> None:
    executor = ExecutorAlone(engine.host, SANDBOX="runsc").start()
    try:
        key = executor.assign(task("true", name=own("no-runtime")))
        executor.wait(lambda: "no runtime runsc" in said(executor), "the sentence")
        assert not executor.available()
        held = executor.wait_phase(key, "accepted")
        assert [phase.phase for phase in held.phases] == ["accepted"]
    finally:
        executor.stop()


def said(executor: ExecutorAlone) -> str:
    state = executor.state()
    return state.engine.detail if state else ""
