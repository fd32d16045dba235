"""The executor process on a real engine: what becomes of tasks, also when it is killed."""

import hashlib
import io
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from procs.executor.engine import DockerEngine
from procs.executor.notes import write_stop
from procs.executor.verdict import Stop
from shared.messages import StopReason, TaskPhase, WantedTask
from shared.taskdir import MIB, InputSpec, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

KEPT = {"spec", "report", "log", "run"}
ASLEEP = ("sh", "-c", "echo up; sleep 300")
ENDED = (
    b"ended unix_ns=1 monotonic_ns=1 code=5 signal=0 max_rss_bytes=1 memory_peak_bytes=1 cpu_ns=1"
    b" oom_kills=0 log_dropped_bytes=0 log_lost_bytes=0\n"
)
DEAF = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    """One for all tests of this file: they differ in their tasks' names."""
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


def count_to(tenths: int) -> str:
    """A line each tenth of a second."""
    return f"i=0; while [ $i -lt {tenths} ]; do echo $i; sleep 0.1; i=$((i+1)); done"


def is_up(executor: ExecutorAlone, key: TaskKey) -> None:
    executor.wait(lambda: b"up" in executor.output(key), f"{key} up")


def said(executor: ExecutorAlone, key: TaskKey) -> str:
    held = executor.held(key)
    return held.detail if held else ""


def test_a_task_runs_and_nothing_is_left(executor: ExecutorAlone) -> None:
    data = b"input\n"
    inputs = (InputSpec(path="in/x.txt", size_bytes=6, sha256=hashlib.sha256(data).hexdigest()),)
    code = (
        "cat /task/in/x.txt; echo err >&2; cp /task/in/x.txt /output/y; mkdir /output/d;"
        " echo $PLAIN $HIDDEN | wc -c; id -u; touch /task/no || echo read-only"
    )
    key = executor.assign(
        task("sh", "-c", code, name="plain", inputs=inputs, environment={"PLAIN": "p"}),
        secrets={"HIDDEN": "s3cret-value"},
        blobs=(data,),
    )
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code, report.error) == (TaskPhase.SUCCEEDED, 0, "")
    assert executor.output(key) == b"input\n15\n65534\nread-only\n"
    assert executor.output(key, 2).startswith(b"err\n")
    with tarfile.open(executor.directory(key) / "output.tar.gz") as archive:
        assert archive.getnames() == ["y"]
    assert [p.phase for p in report.phases] == ["accepted", "preparing", "running", "collecting"]
    assert report.accepted_unix_s < (report.started_unix_s or 0) < report.finished_unix_s
    executor.wait_released(key)
    left = {p.name for p in executor.directory(key).iterdir()}
    assert left == KEPT | {"output.tar.gz"}
    assert executor.containers() == []


@pytest.mark.parametrize(
    ("name", "command", "phase", "code", "cause", "error"),
    [
        ("three", ("sh", "-c", "exit 3"), "failed", 3, "exit", "the command exited 3"),
        ("killed", ("sh", "-c", "kill -9 $$"), "failed", 137, "exit", "killed by signal 9"),
        ("255", ("sh", "-c", "exit 255"), "failed", 255, "exit", "exited 255"),
        ("not-there", ("/no/such",), "failed", 127, "exit", "exited 127"),
    ],
)
def test_ends(
    executor: ExecutorAlone,
    name: str,
    command: tuple[str, ...],
    phase: str,
    code: int,
    cause: str,
    error: str,
) -> None:
    report = executor.wait_report(executor.assign(task(*command, name=name)))
    assert (report.phase, report.exit_code, report.cause) == (phase, code, cause)
    assert error in report.error


@pytest.mark.parametrize(
    ("name", "command", "error"),
    [
        ("nothing", "/no/such", "the command could not be started: No such file or directory"),
        ("folder", "/tmp", "the command could not be started: Permission denied"),
    ],
)
def test_what_cannot_be_executed_never_ran(
    executor: ExecutorAlone, name: str, command: str, error: str
) -> None:
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    executor.docker.import_image_from_data(empty.getvalue(), repository="hivemind-test-bare")
    report = executor.wait_report(
        executor.assign(task(command, name=name, image="hivemind-test-bare"))
    )
    assert (report.phase, report.exit_code, report.cause) == ("failed", -1, "start")
    assert report.error.startswith(f"{error}; ")


@pytest.mark.parametrize("name", ["end", "kill", "images", "network", "debug"])
def test_no_name_is_taken_for_something_else(executor: ExecutorAlone, name: str) -> None:
    key = executor.assign(task("sh", "-c", "echo up; exec sleep 300", name=name))
    is_up(executor, key)
    executor.cancel(key)
    report = executor.wait_report(key, 20)
    assert (report.phase, report.exit_code) == ("cancelled", 143)
    executor.wait_released(key)


def test_a_missing_image_is_said(executor: ExecutorAlone) -> None:
    key = executor.assign(task("true", name="no-image", image="missing.invalid/none:1"))
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code, report.cause) == ("failed", -1, "image")
    assert "image missing.invalid/none:1 could not be pulled" in report.error
    assert report.started_unix_s is None


@pytest.mark.parametrize(
    ("name", "asked", "cause", "error"),
    [
        ("needs", {"requirements": ("-r x",)}, "dependencies", "begins with -"),
        ("net", {"egress": True}, "node", "the owner has set EGRESS=off or"),
        ("scheme", {"image": "https://x/y"}, "image", "https://x/y"),
        ("capital", {"image": "Not/Valid:1"}, "image", "Not/Valid:1"),
    ],
)
def test_it_never_runs_with_less_than_it_asked(
    executor: ExecutorAlone, name: str, asked: dict[str, Any], cause: str, error: str
) -> None:
    report = executor.wait_report(executor.assign(task("true", name=name, **asked)))
    assert (report.phase, report.exit_code, report.cause) == ("failed", -1, cause)
    assert error in report.error


def test_without_egress_there_is_no_network(executor: ExecutorAlone) -> None:
    executor.wait(executor.available, "the engine is there")
    assert executor.networks() == []


def test_an_images_own_environment_may_be_too_much(executor: ExecutorAlone) -> None:
    made = executor.docker.create_container("hivemind-test-task:1", ["x"])
    environment = [f"A{number}={'x' * 60000}" for number in range(40)]
    executor.docker.commit(made["Id"], "hivemind-test-big", conf={"Env": environment})
    executor.docker.remove_container(made["Id"])
    report = executor.wait_report(executor.assign(task(name="big", image="hivemind-test-big")))
    assert (report.phase, report.cause) == ("failed", "start")
    assert "command and environment" in report.error


def test_an_images_environment_and_labels_are_not_the_runtimes(executor: ExecutorAlone) -> None:
    labels = {"hivemind.layer": "x", "hivemind.task": "other", "hivemind.home": "/", "own": "y"}
    made = executor.docker.create_container("hivemind-test-task:1", ["x"])
    conf = {"Env": ["LD_PRELOAD=/proc/self/cwd/x.so", "A=image"], "Labels": labels}
    executor.docker.commit(made["Id"], "hivemind-test-labels", conf=conf)
    executor.docker.remove_container(made["Id"])
    try:
        code = "echo up $A $LD_PRELOAD; sleep 300"
        key = executor.assign(task("sh", "-c", code, name="lb", image="hivemind-test-labels"))
        is_up(executor, key)
        assert executor.output(key) == b"up image /proc/self/cwd/x.so\n"
        shown = executor.docker.inspect_container(executor.container_name(key))
        keeper = Path(f"/proc/{shown['State']['Pid']}/environ").read_text().split("\0")
        assert not [line for line in keeper if line.startswith(("LD_PRELOAD", "A"))]
        found = {name: shown["Config"]["Labels"][name] for name in labels}
        ours = {"hivemind.task": "lb", "hivemind.home": str(executor.home), "hivemind.layer": "x"}
        assert found == {**ours, "own": "y"}  # its image's, where they are not ours
        assert DockerEngine(executor.docker_host).installing(str(executor.home)) == []
        executor.wanted[key] = WantedTask(task_id="lb", attempt=1, stop=StopReason.CANCELLED)
        executor.wait_report(key)
        executor.wait(lambda: executor.containers() == [], "its container gone")
    finally:
        executor.docker.remove_image("hivemind-test-labels", force=True)


def test_a_spec_that_nobody_can_read_is_its_end(executor: ExecutorAlone) -> None:
    directory = executor.home / "tasks" / "garbled.1"
    directory.mkdir()
    (directory / "spec").write_text('{"task_id": "garbled", "attempt": 1, "cpus": NaN}')
    key = TaskKey("garbled", 1)
    executor.wanted[key] = WantedTask(task_id="garbled", attempt=1)
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code, report.cause) == ("failed", -1, "node")
    assert "can't be read" in report.error


def test_a_cancel_that_was_on_disk_when_it_was_killed_is_kept(executor: ExecutorAlone) -> None:
    """Killed between the note of the stop and the report: the next life must not run it."""
    spec = task("sh", "-c", "echo ran", name="noted")
    directory = executor.home / "tasks" / "noted.1"
    directory.mkdir()
    write_stop(directory, Stop(TaskPhase.CANCELLED, "noted", 1, "b"))
    report = executor.wait_report(executor.assign(spec))
    assert (report.phase, report.exit_code, report.error) == ("cancelled", -1, "noted")


def test_out_of_memory(executor: ExecutorAlone) -> None:
    eat = ("python3", "-c", "x=[]\nwhile 1: x.append(bytearray(1<<20))")
    report = executor.wait_report(executor.assign(task(*eat, name="oom", memory_bytes=48 * MIB)))
    assert (report.phase, report.exit_code) == ("out_of_memory", 137)
    assert report.oom_kills >= 1


def test_a_child_that_is_killed_for_memory_is_no_state(executor: ExecutorAlone) -> None:
    code = (
        "import os\np=os.fork()\nif not p:\n x=[]\n while 1: x.append(bytearray(1<<20))\n"
        "os.wait(); print('child gone')"
    )
    key = executor.assign(task("python3", "-c", code, name="oom-child", memory_bytes=48 * MIB))
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("succeeded", 0)
    assert report.oom_kills >= 1


def test_a_timeout_ends_it_with_its_output(executor: ExecutorAlone) -> None:
    code = ("sh", "-c", "echo half > /output/half; echo up; sleep 300")
    report = executor.wait_report(executor.assign(task(*code, name="timeout", timeout_s=2)))
    assert (report.phase, report.exit_code) == ("timed_out", 143)
    assert report.output_files == 1
    assert "timeout of 2 s" in report.error


def test_what_ignores_its_signal_is_stopped_hard_with_its_log(executor: ExecutorAlone) -> None:
    key = executor.assign(task(*DEAF, name="deaf", stop_grace_s=1))
    is_up(executor, key)
    executor.cancel(key)
    report = executor.wait_report(key, 20)
    assert (report.phase, report.exit_code) == ("cancelled", 137)
    assert executor.output(key) == b"up\n"


def test_a_cancel_before_the_start_means_it_never_ran(executor: ExecutorAlone) -> None:
    spec = task("sh", "-c", "echo ran", name="early")
    executor.wanted[spec.key] = executor.stopped(spec.key)
    key = executor.assign(spec, want=False)
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("cancelled", -1)
    assert executor.output(key) == b""


def test_a_full_output_is_out_of_disk_while_it_runs(executor: ExecutorAlone) -> None:
    code = "i=0; while :; do head -c 1000000 /dev/zero > /output/$i; i=$((i+1)); done"
    key = executor.assign(task("sh", "-c", code, name="disk", disk_bytes=20 * MIB))
    report = executor.wait_report(key)
    assert report.phase == "out_of_disk"
    assert "disk" in report.error
    assert report.output_sha256 == ""


def test_an_input_comes_late(executor: ExecutorAlone) -> None:
    data = b"late"
    inputs = (InputSpec(path="x", size_bytes=4, sha256=hashlib.sha256(data).hexdigest()),)
    key = executor.assign(task("cat", "/task/x", name="late", inputs=inputs))
    executor.wait_phase(key, "preparing")
    blobs = executor.directory(key) / "blobs"
    (blobs / "0.part").write_bytes(data)
    (blobs / "0.part").rename(blobs / "0")
    assert executor.wait_report(key).phase == "succeeded"
    assert executor.output(key) == b"late"


def test_an_input_that_differs_is_its_cause(executor: ExecutorAlone) -> None:
    inputs = (InputSpec(path="x", size_bytes=4, sha256="00" * 32),)
    key = executor.assign(task("true", name="forged", inputs=inputs), blobs=(b"data",))
    report = executor.wait_report(key)
    assert (report.phase, report.cause, report.exit_code) == ("failed", "input", -1)


def test_secrets_are_nowhere_when_it_has_ended(executor: ExecutorAlone) -> None:
    secret = "s3cret-" + os.urandom(8).hex()
    key = executor.assign(task(*ASLEEP, name="secret"), secrets={"HIDDEN": secret})
    is_up(executor, key)
    assert secret not in str(executor.inspect(key))
    executor.cancel(key)
    executor.wait_report(key)
    for path in executor.home.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.6])
def test_killed_anywhere_in_a_start_it_runs_once(executor: ExecutorAlone, delay_s: float) -> None:
    code = f"echo ran >> /output/ran; {count_to(20)}; exit 7"
    key = executor.assign(task("sh", "-c", code, name=f"start-{int(delay_s * 1000)}"))
    executor.wait_phase(key, "preparing")
    time.sleep(delay_s)  # the point of the kill, not a synchronisation
    executor.kill()
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("failed", 7)
    assert executor.output(key) == b"".join(b"%d\n" % i for i in range(20))
    with tarfile.open(executor.directory(key) / "output.tar.gz") as archive:
        file = archive.extractfile("ran")
        assert file is not None
        assert file.read() == b"ran\n"


def test_killed_in_a_stop_the_reason_is_kept(executor: ExecutorAlone) -> None:
    key = executor.assign(task(*DEAF, name="stopping", timeout_s=2, stop_grace_s=3))
    executor.wait(lambda: (executor.directory(key) / "stop").exists(), "a stop on disk")
    executor.kill()
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("timed_out", 137)


def test_an_end_that_no_bell_announced_is_found(executor: ExecutorAlone) -> None:
    """The record lies in another file than the one that is watched."""
    key = executor.assign(task(*ASLEEP, name="unrung"))
    is_up(executor, key)
    record, aside = executor.directory(key) / "run", executor.directory(key) / "aside"
    aside.write_bytes(record.read_bytes())
    aside.rename(record)
    later_s = time.monotonic() + 1.1  # a beat after it: whatever that rang is heard by then
    executor.wait(lambda: (state := executor.state()) and state.at_s > later_s, "a beat")
    with record.open("ab") as file:
        file.write(ENDED)
    report = executor.wait_report(key, 20)
    assert (report.phase, report.exit_code, report.cause) == ("failed", 5, "exit")
    executor.wait(lambda: executor.containers() == [], "no container left")


def test_started_a_second_time_it_does_not_run(executor: ExecutorAlone) -> None:
    """Someone calls Docker's start on the container of a task that ran."""
    key = executor.assign(task(*ASLEEP, name="twice"))
    is_up(executor, key)
    container = executor.inspect(key)["Id"]
    executor.docker.kill(container, "SIGKILL")  # the keeper: no end is written
    with pytest.raises(APIError, match="does not exist"):  # what it mounts has been taken away
        executor.docker.start(container)
    report = executor.wait_report(key)
    assert report.phase == "failed"
    assert executor.output(key) == b"up\n"


def test_two_workers_on_one_engine_run_a_task_of_the_same_name(
    engine: PrivateEngine, executor: ExecutorAlone
) -> None:
    other = ExecutorAlone(engine.host).start()
    try:
        theirs = other.assign(task(*ASLEEP, name="both"))
        is_up(other, theirs)
        ours = executor.assign(task("sh", "-c", "exit 7", name="both"))
        assert executor.wait_report(ours).exit_code == 7
        executor.wait_released(ours)
        assert other.inspect(theirs)["State"]["Running"]
        other.cancel(theirs)
        assert other.wait_report(theirs).exit_code == 143
    finally:
        other.stop()


def test_anothers_container_is_left_alone_whatever_its_name(executor: ExecutorAlone) -> None:
    name = executor.container_name(TaskKey("squatted", 1))
    theirs = executor.docker.create_container("hivemind-test-task:1", ["sh"], name=name)["Id"]
    try:
        key = executor.assign(task("true", name="squatted"))
        report = executor.wait_report(key)
        assert (report.phase, report.exit_code, report.cause) == ("failed", -1, "node")
        assert f'"/{name}" is already in use' in report.error
        executor.wait_released(key)
        assert executor.docker.inspect_container(theirs)["State"]["Status"] == "created"
    finally:
        executor.docker.remove_container(theirs)


def test_a_removed_container_is_said(executor: ExecutorAlone) -> None:
    key = executor.assign(task(*ASLEEP, name="removed"))
    is_up(executor, key)
    executor.docker.remove_container(executor.inspect(key)["Id"], force=True)
    report = executor.wait_report(key)
    assert (report.phase, report.cause) == ("failed", "removed")


def test_a_broken_database_is_set_aside(executor: ExecutorAlone) -> None:
    key = executor.assign(task(*ASLEEP, name="database"))
    is_up(executor, key)
    pid = executor.pid()
    executor.kill()
    for suffix in ("", "-wal", "-shm"):
        (executor.home / "lib" / f"executor.db{suffix}").write_bytes(b"garbage" * 1000)
    lib = executor.home / "lib"
    executor.wait(lambda: list(lib.glob("executor.db.broken-*")), "the broken one set aside")
    assert executor.pid() != pid
    executor.cancel(key)
    assert executor.wait_report(key).phase == "cancelled"


def test_the_engine_goes_and_comes_back_under_a_task(
    engine: PrivateEngine, executor: ExecutorAlone
) -> None:
    code = f"{count_to(60)}; exit 5"
    key = executor.assign(task("sh", "-c", code, name="engine"))
    executor.wait_phase(key, "running")
    engine.kill()
    executor.wait(lambda: not executor.available(), "the engine known to be away")
    engine.start()
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code) == ("failed", 5)
    assert executor.output(key) == b"".join(b"%d\n" % i for i in range(60))
    executor.wait(lambda: executor.available(), "the engine known to be back")
    executor.wait(lambda: executor.containers() == [], "no container left")


def test_a_report_that_finds_no_room_is_written_later(executor: ExecutorAlone) -> None:
    key = executor.assign(task("sh", "-c", "echo up; sleep 1; exit 4", name="no-room"))
    is_up(executor, key)
    in_the_way = executor.directory(key) / ".report.new"
    in_the_way.mkdir()
    pid = executor.pid()
    executor.wait(lambda: "collect:" in said(executor, key), "a first try")
    in_the_way.rmdir()
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code, executor.pid()) == ("failed", 4, pid)


def test_only_leftovers_that_have_ended_for_certain_are_removed(executor: ExecutorAlone) -> None:
    for name in ("left-1", "left-2", "left-3", "unknown"):
        labels = {"home": str(executor.home), "task": name, "attempt": "1"}
        body = {
            "Image": "hivemind-test-task:1",
            "Labels": {f"hivemind.{label}": value for label, value in labels.items()},
        }
        if name != "unknown":
            (executor.home / "kept" / f"{name}.1").mkdir(parents=True)
            (executor.home / "kept" / f"{name}.1" / "report").touch()
        executor.docker.create_container_from_config(body, name)  # type: ignore[no-untyped-call]
    executor.wait(lambda: executor.containers() == ["/unknown"], "the three removed")
    executor.docker.remove_container("unknown")


def test_an_engine_that_hangs_is_known_and_does_not_keep_the_process(
    engine: PrivateEngine, executor: ExecutorAlone
) -> None:
    keys = [executor.assign(task(*ASLEEP, name=f"hang-{n}", cpus=0.1)) for n in range(3)]
    for key in keys:
        is_up(executor, key)
    pid = int((engine.folder / "docker.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        for key in keys:
            executor.cancel(key)  # their stops hang in the engine
        executor.wait(lambda: not executor.available(), "the engine known to be away", 20)
        seen = executor.state()
        executor.wait(lambda: executor.state() not in (None, seen), "beats go on", 10)
        before = executor.pid()
        os.kill(before, signal.SIGTERM)
        executor.wait(lambda: not Path(f"/proc/{before}").exists(), "its end in order", 8)
    finally:
        os.kill(pid, signal.SIGCONT)
    for key in keys:
        assert executor.wait_report(key).phase == "cancelled"
