"""How real tasks end: the trees they leave are packed as documented and removed whole, what is
left of a failed one is kept."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import TaskPhase
from shared.taskdir import GIB, MIB, TaskKey
from tests.fakes.executor_alone import ExecutorAlone, task
from tests.system.engine.private import PrivateEngine

pytestmark = pytest.mark.docker

KEPT = {"spec", "report", "log", "run", "output.tar.gz"}
MOST_GROWTH_MIB = 64  # of the executor's memory, whatever the tree
DEEP = """
import os
os.mkdir("/output/deep"); os.chdir("/output/deep")
for level in range(LEVELS):
    os.mkdir("d"); os.chdir("d")
    if level == 1500: open("far", "w").write("far")
open("end", "w").write("x")
"""
WIDE = """
import os
os.mkdir("/output/wide"); os.chdir("/output/wide")
for number in range(100_000):
    os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))
"""
ODD = r"""
import os, socket
os.chdir("/output")
os.makedirs("real/inner")
open("real/file", "w").write("real")
os.link("real/file", "twin")
os.chmod("twin", 0o6777)
for name, target in {"shadow": "/etc/shadow", "report": "../report", "folder": "/etc",
                     "claim": "/.hivemind", "up": "..", "self": "self", "gone": "/none",
                     "task": "/task"}.items():
    os.symlink(target, name)
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("n" * 255, "w").write("long")
open("a\nb\t\x1b[2J", "w").write("odd")
open(b"\xff\xfe", "w").write("bytes")
open("-rf", "w").write("dash")
with open("sparse", "w") as file: os.truncate("sparse", 30 << 20)
os.mkdir("sticky"); os.chmod("sticky", 0o1777); open("sticky/x", "w").write("sticky")
os.mkdir("shut"); open("shut/x", "w").write("shut"); os.chmod("shut/x", 0); os.chmod("shut", 0)
try: os.link("/task/in", "input")
except OSError as err: print("no link to an input:", err.strerror)
"""
WANTED = {
    "real/file": b"real", "twin": b"real", "n" * 255: b"long", "a\nb\t\x1b[2J": b"odd",
    os.fsdecode(b"\xff\xfe"): b"bytes", "-rf": b"dash", "sparse": b"\0" * (30 << 20),
    "sticky/x": b"sticky", "shut/x": b"shut",
}  # fmt: skip


@pytest.fixture(scope="module")
def executor(engine: PrivateEngine) -> Iterator[ExecutorAlone]:
    assert engine.task_image
    alone = ExecutorAlone(engine.host).start()
    yield alone
    alone.stop()


def cost(pid: int) -> tuple[int, int]:
    """The most memory it has had, in MiB, and its open descriptors."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run(executor: ExecutorAlone, name: str, code: str, *globs: str) -> TaskKey:
    """It runs to its end, is packed and cleaned; nothing of its tree is left."""
    executor.wait(executor.available, "the engine")
    before = cost(executor.pid())
    spec = task("python3", "-c", code, name=name, cpus=2, disk_bytes=GIB, output_globs=globs)
    key = executor.assign(spec)
    report = executor.wait_report(key, 120)
    assert (report.phase, report.error) == (TaskPhase.SUCCEEDED, "")
    executor.wait_released(key)
    after = cost(executor.pid())
    print(f"{name}: memory {before[0]} -> {after[0]} MiB, descriptors {before[1]} -> {after[1]}")
    assert after[0] - before[0] < MOST_GROWTH_MIB
    assert {p.name for p in executor.directory(key).iterdir()} <= KEPT
    return key


def packed(executor: ExecutorAlone, key: TaskKey) -> dict[str, bytes]:
    found = {}
    with tarfile.open(executor.directory(key) / "output.tar.gz") as archive:
        for member in archive:
            assert member.isreg()
            assert member.mode & 0o7000 == 0
            found[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_odd_names_links_pipes_and_shut_folders(executor: ExecutorAlone) -> None:
    key = run(executor, "odd", ODD)
    assert packed(executor, key) == WANTED


def test_ten_thousand_levels(executor: ExecutorAlone) -> None:
    key = run(executor, "deep", DEEP.replace("LEVELS", "10_000"), "deep/" + "d/" * 1501 + "far")
    assert packed(executor, key) == {"deep/" + "d/" * 1501 + "far": b"far"}


def test_what_no_path_can_name_is_said_with_nothing_left_out(executor: ExecutorAlone) -> None:
    code = DEEP.replace("LEVELS", "2_100")
    key = executor.assign(task("python3", "-c", code, name="too-deep"))
    report = executor.wait_report(key, 120)
    assert (report.phase, report.exit_code) == (TaskPhase.OUT_OF_DISK, 0)
    assert "path of over 4095 bytes" in report.error
    executor.wait_released(key)
    assert (executor.home / "debug" / key.directory / "output" / "deep" / "d").is_dir()


def test_a_hundred_thousand_files(executor: ExecutorAlone) -> None:
    key = run(executor, "wide", WIDE, "wide/77*7")
    assert set(packed(executor, key)) == {
        f"wide/{n}" for n in range(100_000) if re.fullmatch("77.*7", str(n))
    }


def test_what_is_left_of_a_failed_task(executor: ExecutorAlone) -> None:
    code = ("sh", "-c", "echo half > /output/half; echo why >&2; exit 3")
    key = executor.assign(task(*code, name="failed"), secrets={"KEY": "s3cret-of-the-task"})
    executor.wait_report(key)
    executor.wait_released(key)
    folder = executor.home / "debug" / "failed.1"
    inspected = json.loads((folder / "inspect.json").read_text())
    assert inspected["State"]["Status"] == "exited"
    assert inspected["HostConfig"]["ReadonlyRootfs"] is True
    assert (folder / "output" / "half").read_text() == "half\n"
    assert b"code=3" in (folder / "run").read_bytes()
    assert executor.output(key, 2) == b"why\n"
    assert [p.name for p in folder.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()] == []
    assert executor.containers() == []


def test_a_memory_bomb_is_seen_in_what_is_left(executor: ExecutorAlone) -> None:
    eat = ("python3", "-c", "x=[]\nwhile 1: x.append(bytearray(1<<20))")
    key = executor.assign(task(*eat, name="eater", memory_bytes=48 * MIB))
    assert executor.wait_report(key).phase is TaskPhase.OUT_OF_MEMORY
    executor.wait_released(key)
    left = executor.home / "debug" / "eater.1" / "inspect.json"
    state = json.loads(left.read_text())["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 137)
    assert "OOMKilled" in state


BUSY = """
import time
block = b"x" * (50 << 20)
open("/output/file", "wb").write(b"y" * (8 << 20))
open("/output/file").close()
until = time.monotonic() + 2.5
while time.process_time() < 1.0: pass
time.sleep(max(0, until - time.monotonic()))
"""


def test_the_report_says_what_a_known_work_took(executor: ExecutorAlone) -> None:
    """Also what only the life before knew: the executor is killed while it runs."""
    spec = task("python3", "-c", BUSY, name="busy", cpus=1, memory_bytes=200 * MIB)
    key = executor.assign(spec)
    executor.wait_phase(key, "running")
    executor.kill()
    report = executor.wait_report(key)
    assert (report.phase, report.exit_code, report.cause) == (TaskPhase.SUCCEEDED, 0, "")
    assert 1.0 <= (report.cpu_s or 0) < report.run_s
    assert report.run_s >= 2.4
    assert 0 < report.cpu_pct_average < 100
    assert 50 * MIB < (report.memory_peak_bytes or 0) < 200 * MIB
    assert 25 < report.memory_pct_average < 100
    assert report.image_digest == executor.docker.images(spec.image)[0]["Id"]
    assert (report.runtime, report.oom_kills, report.gpu_uuids) == ("runc", 0, ())
    assert report.accepted_unix_s < (report.started_unix_s or 0) < report.finished_unix_s
    assert 0 < report.prepare_s < 60
    assert (report.output_files, report.output_bytes > 0) == (1, True)
