"""What can break under a task, on a real engine: at a chosen call, or in a file. Each of them
ends as README's table of what can break says; the command begins once."""

import re
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procs.executor import cgroup
from procs.executor.main import THREADS
from shared.files import remove_tree
from shared.taskdir import ARCHIVE, Report, TaskKey
from tests.fakes.engine_proxy import EngineProxy, Moment, Trap
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.fakes.witness import SAYS, WORD_BYTES, Witness
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

CREATE, START = "POST /containers/create", "POST /containers/[0-9a-f]+/start"
KILL, REMOVE = "POST /containers/.*/kill", "DELETE /containers/"
COUNT = "i=0; while [ $i -lt 6 ]; do echo $i; sleep 0.1; i=$((i+1)); done; exit 7"
COUNTED = b"".join(b"%d\n" % number for number in range(6))
ASLEEP = "echo up; exec sleep 300"


@dataclass
class Rig:
    """One executor, and the wire to its engine."""

    executor: ExecutorAlone
    engine: PrivateEngine
    proxy: EngineProxy
    witness: Witness

    def assign(self, name: str, code: str = COUNT, **fields: Any) -> TaskKey:
        return self.executor.assign(task("sh", "-c", SAYS + code, name=name, **fields))

    def is_up(self, key: TaskKey) -> None:
        self.executor.wait(lambda: b"up" in self.executor.output(key), f"{key} up")

    def container(self, key: TaskKey) -> str:
        """Its id."""
        return str(self.executor.inspect(key)["Id"])

    def springs(self, trap: Trap) -> None:
        self.executor.wait(trap.sprung.is_set, f"{trap.call} {trap.moment}")

    def ended(self, key: TaskKey) -> Report:
        def final() -> bool:
            self.witness.look(key)
            held = self.executor.held(key)
            return held is not None and held.phase.is_final

        self.executor.wait(final, f"the end of {key}")
        assert self.witness.begun(key) <= 1
        return self.executor.wait_report(key)

    def counted(self, key: TaskKey) -> None:
        """It ran once, to its end, and its log and output are whole."""
        report = self.ended(key)
        assert (report.phase, report.exit_code, report.cause) == ("failed", 7, "exit"), report
        self.said_once(key, COUNTED)
        assert report.image_digest.startswith("sha256:")

    def said_once(self, key: TaskKey, what: bytes) -> None:
        output = self.executor.output(key)
        assert output[WORD_BYTES:] == what
        with tarfile.open(self.executor.directory(key) / ARCHIVE) as archive:
            file = archive.extractfile("ran")
            assert file is not None
            assert file.read() == output[:WORD_BYTES]

    def nothing_is_left(self, key: TaskKey) -> None:
        self.executor.wait_released(key)
        self.executor.wait(lambda: self.executor.containers() == [], "no container")
        left = {path.name for path in self.executor.directory(key).iterdir()}
        assert left <= {"spec", "report", "log", "run", ARCHIVE}, left


@pytest.fixture(scope="module")
def rig(engine: PrivateEngine) -> Iterator[Rig]:
    assert engine.task_image
    with tempfile.TemporaryDirectory(prefix="hp-", dir="/tmp") as folder:
        proxy = EngineProxy(Path(folder) / "p.sock", engine.folder / "docker.sock")
        executor = ExecutorAlone(proxy.host).start()
        witness = Witness(engine.folder / "docker.sock", executor.home)
        try:
            yield Rig(executor, engine, proxy, witness)
        finally:
            executor.stop()
            proxy.close()


def named(prefix: str, trap: Trap) -> str:
    """A task's name after the trap."""
    call = re.sub(r"[^a-z]+", "-", trap.call.lower()).strip("-")
    return f"{prefix}-{call}-{trap.moment.name.lower()}-{int(trap.after_s * 1000)}"


def points(*chosen: tuple[str, Moment, float]) -> list[Any]:
    traps = [Trap(call, moment, after_s=after_s) for call, moment, after_s in chosen]
    return [pytest.param(trap, id=named("", trap)[1:]) for trap in traps]


# ------------------------------------------------------------------ at a chosen call

CALLS = points(  # tests/bench/kill_points.py goes through them all
    (CREATE, Moment.SENT, 0.0), (CREATE, Moment.ANSWERED, 0.0), (START, Moment.BEFORE, 0.0),
    (START, Moment.SENT, 0.1), (START, Moment.ANSWERED, 0.0), (REMOVE, Moment.SENT, 0.0),
)  # fmt: skip


@pytest.mark.parametrize("trap", CALLS)
def test_the_executor_is_killed_in_a_call(rig: Rig, trap: Trap) -> None:
    trap.action = rig.executor.kill_now
    rig.proxy.set(trap)
    key = rig.assign(named("x", trap))
    rig.springs(trap)
    rig.counted(key)
    rig.nothing_is_left(key)


@pytest.mark.parametrize("trap", CALLS)
def test_the_engine_goes_away_under_a_call(rig: Rig, trap: Trap) -> None:
    rig.proxy.set(trap)
    key = rig.assign(named("c", trap))
    rig.springs(trap)
    rig.counted(key)
    rig.nothing_is_left(key)


@pytest.mark.parametrize(
    "trap",
    points(
        (CREATE, Moment.SENT, 0.003), (START, Moment.SENT, 0.05), (START, Moment.SENT, 0.12),
        (REMOVE, Moment.SENT, 0.003),
    ),
)  # fmt: skip
def test_the_engine_is_killed_in_a_call(rig: Rig, trap: Trap) -> None:
    trap.action = rig.engine.kill
    rig.proxy.set(trap)
    key = rig.assign(named("d", trap))
    rig.springs(trap)
    rig.engine.start()
    rig.counted(key)
    rig.nothing_is_left(key)


@pytest.mark.parametrize("who", ["executor", "engine"])
@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.SENT])
def test_who_is_killed_in_a_stop_does_not_change_its_end(
    rig: Rig, who: str, moment: Moment
) -> None:
    key = rig.assign(f"stop-{who}-{moment.name.lower()}", ASLEEP)
    rig.is_up(key)
    kill = rig.executor.kill_now if who == "executor" else rig.engine.kill
    trap = rig.proxy.set(Trap(KILL, moment, kill))
    rig.executor.cancel(key)
    rig.springs(trap)
    if who == "engine":
        rig.engine.start()
    report = rig.ended(key)
    assert (report.phase, report.exit_code) == ("cancelled", 143)
    rig.said_once(key, b"up\n")
    rig.nothing_is_left(key)


@pytest.mark.parametrize("call", [CREATE, START])
def test_a_stop_does_not_wait_for_a_call_that_hangs(rig: Rig, call: str) -> None:
    go = threading.Event()
    trap = rig.proxy.set(Trap(call, Moment.BEFORE, go.wait, passes=True))
    key = rig.assign(f"hung-{'create' if call is CREATE else 'start'}")
    try:
        rig.executor.wait(lambda: trap.taken, "the call")
        rig.executor.cancel(key)
        report = rig.ended(key)
        assert not trap.sprung.is_set()
    finally:
        go.set()
    assert (report.phase, report.exit_code) == ("cancelled", -1)
    rig.nothing_is_left(key)
    assert rig.executor.output(key) == b""


def test_a_stop_does_not_wait_for_others_calls_that_hang(rig: Rig) -> None:
    """As many hang as there are threads for jobs."""
    go = threading.Event()
    sleeper = rig.assign("sleeper", ASLEEP)
    rig.is_up(sleeper)
    traps = [rig.proxy.set(Trap(REMOVE, Moment.BEFORE, go.wait)) for _ in range(THREADS)]
    keys = [rig.assign(f"hung-remove-{number}", "exit 7") for number in range(THREADS)]
    try:
        rig.executor.wait(lambda: all(trap.taken for trap in traps), "every thread in a call")
        rig.executor.cancel(sleeper)
        rig.executor.wait(lambda: not cgroup.processes(rig.container(sleeper)), "its end", 20)
        assert not any(trap.sprung.is_set() for trap in traps)
    finally:
        go.set()
    assert rig.ended(sleeper).exit_code == 143
    for key in (sleeper, *keys):
        rig.executor.wait_released(key)
    rig.executor.wait(lambda: rig.executor.containers() == [], "no container")


def test_a_stop_reaches_a_task_while_the_engine_is_away(rig: Rig) -> None:
    key = rig.assign("kernel", ASLEEP)
    rig.is_up(key)
    rig.engine.kill()
    try:
        rig.executor.wait(lambda: not rig.executor.available(), "the engine known to be away")
        rig.executor.cancel(key)
        report = rig.ended(key)
        assert (report.phase, report.exit_code) == ("cancelled", 143)
    finally:
        rig.engine.start()
    rig.nothing_is_left(key)


# ------------------------------------------------------------------ someone else's hand


def test_a_container_that_is_removed_before_its_start_is_made_anew(rig: Rig) -> None:
    name = rig.executor.container_name(TaskKey("taken", 1))
    trap = Trap(START, Moment.BEFORE, passes=True)
    trap.action = lambda: rig.executor.docker.remove_container(name, force=True)
    rig.proxy.set(trap)
    key = rig.assign("taken")
    rig.counted(key)
    assert trap.sprung.is_set()
    rig.nothing_is_left(key)


def test_an_image_that_is_removed_before_the_create_is_pulled_again(rig: Rig) -> None:
    image = "hivemind-test-fleeting:1"
    rig.executor.docker.tag(rig.engine.task_image, "hivemind-test-fleeting", "1")
    made = rig.executor.docker.create_container(image, ["x"])
    committed = rig.executor.docker.commit(made["Id"], "hivemind-test-fleeting", "1")
    rig.executor.docker.remove_container(made["Id"])
    trap = Trap(CREATE, Moment.BEFORE, passes=True)
    trap.action = lambda: rig.executor.docker.remove_image(committed["Id"], force=True)
    rig.proxy.set(trap)
    report = rig.ended(rig.assign("fleeting", image=image))
    assert trap.sprung.is_set()
    assert (report.phase, report.exit_code, report.cause) == ("failed", -1, "image")
    assert f"{image} could not be pulled" in report.error


def test_an_image_that_is_removed_under_a_task_changes_nothing(rig: Rig) -> None:
    key = rig.assign("untagged", "echo up; sleep 1; exit 7")
    rig.is_up(key)
    rig.executor.docker.tag(rig.engine.task_image, "hivemind-test-aside", "1")
    try:
        rig.executor.docker.remove_image(rig.engine.task_image, force=True)
        rig.executor.kill()
        report = rig.ended(key)
    finally:
        rig.executor.docker.tag("hivemind-test-aside:1", "hivemind-test-task", "1")
        rig.executor.docker.remove_image("hivemind-test-aside:1")
    assert (report.phase, report.exit_code) == ("failed", 7)
    rig.nothing_is_left(key)


# ------------------------------------------------------------------ what the engine forgot


def forget(rig: Rig, container: str) -> None:
    """The engine dies and comes back without the container, whose processes live."""
    rig.engine.kill()
    remove_tree(rig.engine.folder / "data" / "containers" / container)
    rig.engine.start()


def test_a_task_that_the_engine_lost_runs_to_its_end(rig: Rig) -> None:
    key = rig.assign("lost", f"echo up; sleep 2; {COUNT}")
    rig.is_up(key)
    container = rig.executor.inspect(key)["Id"]
    forget(rig, container)
    rig.executor.kill()
    report = rig.ended(key)
    assert (report.phase, report.exit_code) == ("failed", 7)
    rig.said_once(key, b"up\n" + COUNTED)
    rig.nothing_is_left(key)


def test_a_task_that_the_engine_lost_is_stopped_through_the_kernel(rig: Rig) -> None:
    key = rig.assign("lost-deaf", "trap '' TERM; echo up; while :; do sleep 1; done",
                     stop_grace_s=1)  # fmt: skip
    rig.is_up(key)
    container = rig.executor.inspect(key)["Id"]
    forget(rig, container)
    rig.executor.kill()
    rig.executor.cancel(key)
    report = rig.ended(key)
    assert (report.phase, report.exit_code) == ("cancelled", 137)
    rig.said_once(key, b"up\n")
    rig.nothing_is_left(key)
    rig.executor.wait(lambda: not cgroup.processes(container), "no process")


def test_supervisord_is_killed_under_a_task(rig: Rig) -> None:
    key = rig.assign("supervisord")
    rig.executor.wait_phase(key, "running")
    rig.executor.kill_supervisord()
    rig.executor.start()
    rig.counted(key)
    rig.nothing_is_left(key)
