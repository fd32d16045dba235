"""Thirty different tasks at once: each ends as it should, and nothing is left of any."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from tests.system.engine.private import PrivateEngine
from tests.system.whole import Master, Output, Worker, processes_of, things, until

pytestmark = [pytest.mark.docker, pytest.mark.system]

MIB = 2**20
TASK = {"cpus": 0.25, "memory_bytes": 48 * MIB, "disk_bytes": 100 * MIB, "stop_grace_s": 1.0}
NOWHERE = "127.0.0.1:9/nothing:1"
INPUT = b"\x00an input\xff\n"


@dataclass(frozen=True)
class Case:
    """A task and its end. `stderr` None: in the words of a program that is not ours."""

    name: str
    command: tuple[str, ...]
    state: str = "succeeded"
    exit_code: int = 0
    stdout: bytes = b""
    stderr: bytes | None = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    cancelled: bool = False
    error: str = ""


def sh(text: str) -> tuple[str, ...]:
    return "sh", "-c", text


def python(text: str) -> tuple[str, ...]:
    return "python3", "-c", text


def exits(code: int) -> Case:
    return Case(f"exit {code}", sh(f"exit {code}"), "failed" if code else "succeeded", code)


def archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("in/deep.txt")
        entry.size = len(INPUT)
        tar.addfile(entry, io.BytesIO(INPUT))
    return packed.getvalue()


def megabytes(count: int) -> bytes:
    random = Random(count)
    return b"".join(random.randbytes(MIB) for _ in range(count))


WRITE_50_MB = """
from random import Random
random = Random(50)
with open("/output/large.bin", "wb") as file:
    for _ in range(50):
        file.write(random.randbytes(2**20))
"""
LOG_5_MB = """
import sys
for n in range(50000):
    sys.stdout.write(f"{n:099d}\\n")
"""
TAKE_TOO_MUCH = "b = bytearray(200 * 2**20); print(len(b))"
ASLEEP = "echo up; exec sleep 600"
DEAF = "trap '' TERM; echo up; while :; do sleep 0.2; done"
TIDY = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done"
SEGFAULT = python("import os; os.kill(os.getpid(), 11)")

CASES = (
    exits(0),
    exits(1),
    exits(3),
    exits(255),
    Case("both streams", sh("echo a; echo b >&2; echo c"), stdout=b"a\nc\n", stderr=b"b\n"),
    Case("no newline at the end", sh("printf 'half a line'"), stdout=b"half a line"),
    Case("not UTF-8", sh(r"printf '\377\376\000\200 x\n'"), stdout=b"\xff\xfe\x00\x80 x\n"),
    Case("a line of 1 MB", python("print('x' * 10**6)"), stdout=b"x" * 10**6 + b"\n"),
    Case("5 MB of log", python(LOG_5_MB), stdout=b"".join(b"%099d\n" % n for n in range(50000))),
    Case("50 MB of output", python(WRITE_50_MB), files={"large.bin": megabytes(50)}),
    Case(
        "a tree of files",
        sh("mkdir -p 'a b/c'; echo 1 >'a b/c/ü'; : >empty; ln -s /etc/passwd link; ln empty hard"),
        files={"a b/c/ü": b"1\n", "empty": b"", "hard": b""},
    ),
    Case(
        "only what a pattern names",
        sh("echo 1 >yes.txt; echo 2 >no.log"),
        files={"yes.txt": b"1\n"},
        more={"output_globs": ["*.txt"]},
    ),
    Case("cancelled", sh(ASLEEP), "cancelled", 143, b"up\n", cancelled=True),
    Case("cancelled, tidies up", sh(TIDY), "cancelled", 5, b"up\nbye\n", cancelled=True),
    Case("cancelled, ignores SIGTERM", sh(DEAF), "cancelled", 137, b"up\n", cancelled=True),
    Case("timed out", sh(ASLEEP), "timed_out", 143, b"up\n", more={"timeout_s": 2.0}),
    Case("timed out, tidies up", sh(TIDY), "timed_out", 5, b"up\nbye\n", more={"timeout_s": 2.0}),
    Case("timed out, deaf", sh(DEAF), "timed_out", 137, b"up\n", more={"timeout_s": 2.0}),
    Case("out of memory", python(TAKE_TOO_MUCH), "out_of_memory", 137),
    Case(
        "its child out of memory",
        sh(f'python3 -c "{TAKE_TOO_MUCH}"; echo "code $?"'),
        stdout=b"code 137\n",
        stderr=None,
    ),
    Case("kills itself", sh("echo up; kill -9 $$"), "failed", 137, b"up\n"),
    Case("segmentation fault", SEGFAULT, "failed", 139),
    Case("leaves a child behind", sh("sleep 600 & echo up"), stdout=b"up\n"),
    Case("missing command", ("/no/such/command",), "failed", 127, stderr=None),
    Case("missing image", sh("echo"), "failed", -1, more={"image": NOWHERE}, error="pulled"),
    Case("a variable", sh("echo $GIVEN"), stdout=b"x y\n", more={"environment": {"GIVEN": "x y"}}),
    Case("a secret", sh("echo $HIDDEN"), stdout=b"hush\n", more={"secrets": {"HIDDEN": "hush"}}),
    Case("who it is", sh("id -u; ls -A /task"), stdout=b"65534\n"),
    Case("an input", sh("cat /task/a.bin"), stdout=INPUT, more={"inputs": ["a.bin", INPUT, False]}),
    Case(
        "an archive as input",
        sh("cat /task/d/in/deep.txt; cp d/in/deep.txt /output/copy"),
        stdout=INPUT,
        files={"copy": INPUT},
        more={"inputs": ["d", archive(), True]},
    ),
)


def submit(master: Master, case: Case) -> str:
    more = {**TASK, **case.more}
    if "inputs" in more:
        path, content, unpack = more["inputs"]
        sha256 = master.upload(content)
        size = len(content)
        one = {"path": path, "sha256": sha256, "size_bytes": size, "unpack": unpack}
        more["inputs"] = [one]
    return master.submit(*case.command, **more)


def judge(master: Master, case: Case, task_id: str) -> None:
    task, log = master.ended(task_id), master.log(task_id)
    assert (task["state"], task["exit_code"], task["attempt"]) == (case.state, case.exit_code, 1)
    assert case.error in task["error"]
    assert log["stdout"] == case.stdout
    assert case.stderr is None or log["stderr"] == case.stderr
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in case.files.items()}
    output = master.output(task_id) if task["output"] else Output("")
    assert output.files == expected
    assert output.sha256 == (task["output"]["sha256"] if expected else "")


def test_thirty_mixed_tasks_at_once(engine: PrivateEngine, running: tuple[Worker, Master]) -> None:
    worker, master = running
    before = things(engine.host)
    assert len(CASES) == 30
    task_ids = {case.name: submit(master, case) for case in CASES}
    for name in (case.name for case in CASES if case.cancelled):
        until(lambda name=name: master.is_running(task_ids[name]), name)  # type: ignore[misc]
        master.cancel(task_ids[name])
    containers = worker.container_ids(engine.host)
    failures = []
    for case in CASES:
        try:
            judge(master, case, task_ids[case.name])
        except AssertionError as err:
            failures.append(f"{case.name}: {str(err)[:600]}")
    assert not failures, "\n".join(failures)
    until(lambda: worker.held() == [], "every directory is let go")
    kept = {path.name for path in (worker.home / "kept").iterdir()}
    assert kept == {f"{task_id}.1" for task_id in task_ids.values()}
    assert things(engine.host) == before
    assert processes_of(containers) == []
