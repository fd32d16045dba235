"""`hivemind run` as a real process, against a real master and a toy worker."""

import asyncio
import io
import os
import signal
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from procs.master.main import Addresses, Settings, running
from shared.pb import hivemind_pb2 as pb
from tests.fakes.toy_worker import Play, ToyWorker

OUT, ERR, WORKER = pb.LOG_STREAM_STDOUT, pb.LOG_STREAM_STDERR, pb.LOG_STREAM_WORKER
REPOSITORY = Path(__file__).parents[2]


class Ran(NamedTuple):
    code: int
    out: bytes
    err: bytes


async def start(addresses: Addresses, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "procs.client",
        *arguments,
        cwd=REPOSITORY,
        env=os.environ | {"HIVEMIND_MASTER": addresses.http},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def hivemind(addresses: Addresses, *arguments: str) -> Ran:
    process = await start(addresses, *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return Ran(process.returncode, out, err)


def with_master(
    tmp_path: Path, scenario: Callable[[Addresses, ToyWorker], Awaitable[None]]
) -> None:
    async def run() -> None:
        settings = Settings("127.0.0.1:0", "127.0.0.1:0", tmp_path / "master")
        async with running(settings) as addresses, ToyWorker(addresses.grpc) as worker:
            await scenario(addresses, worker)

    asyncio.run(run())


def archive(**files: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def test_a_task_runs_from_input_to_output(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\x00\xff small")
    (tmp_path / "large.bin").write_bytes(os.urandom(2 * 2**20))
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "x.txt").write_text("x")
    seen: list[pb.TaskAssignmentRequest] = []

    def play(request: pb.TaskAssignmentRequest) -> Play:
        seen.append(request)
        records = [(OUT, b"caf\xe9\n\x00"), (ERR, b"oops"), (WORKER, b"log cut\n"), (OUT, b"end")]
        return Play(records, archive(made=b"result", other=b""), exit_code=0)

    async def scenario(addresses: Addresses, worker: ToyWorker) -> None:
        worker.play = play
        ran = await hivemind(
            addresses,
            "run",
            *("--input", str(tmp_path / "data.bin"), "--input", str(tmp_path / "large.bin")),
            *("--input", str(tmp_path / "folder"), "--output", str(tmp_path / "out")),
            *("--env", "A=b=c", "--secret", "KEY=hush", "--cpus", "0.5", "--memory", "512m"),
            *("--timeout", "10m", "--requirement", "six==1.16", "--", "python3", "-c", "1"),
        )
        assert ran.code == 0, ran
        assert ran.out == b"caf\xe9\n\x00end"
        task_id = seen[0].task_id.encode()
        assert ran.err == b"oopslog cut\nhivemind: %s succeeded, exit code 0, reward 8\n" % task_id

    with_master(tmp_path, scenario)
    assert (tmp_path / "out" / "made").read_bytes() == b"result"
    (request,) = seen
    assert list(request.command) == ["python3", "-c", "1"]
    assert dict(request.environment) == {"A": "b=c"}
    assert dict(request.secrets) == {"KEY": "hush"}
    assert list(request.requirements) == ["six==1.16"]
    assert request.resources == pb.Resources(cpus=0.5, memory_bytes=512 * 2**20)
    assert request.timeout.seconds == 600
    small, large, folder = request.inputs
    assert (small.path, small.inline, small.unpack) == ("data.bin", b"\x00\xff small", False)
    assert (large.path, large.inline, large.size_bytes) == ("large.bin", b"", 2 * 2**20)
    assert (folder.path, folder.unpack) == ("folder", True)
    with tarfile.open(fileobj=io.BytesIO(folder.inline)) as tar:
        assert tar.getnames() == ["deep", "deep/x.txt"]


@pytest.mark.parametrize(
    ("play", "code"),
    [
        pytest.param(Play(state=pb.TASK_STATE_FAILED, exit_code=3), 3, id="its own code"),
        pytest.param(Play(state=pb.TASK_STATE_TIMED_OUT, exit_code=143), 143, id="timed out"),
        pytest.param(
            Play(state=pb.TASK_STATE_FAILED, exit_code=-1, cause=pb.FAILURE_CAUSE_IMAGE),
            125,
            id="no image",
        ),
    ],
)
def test_run_exits_with_the_tasks_own_code(tmp_path: Path, play: Play, code: int) -> None:
    async def scenario(addresses: Addresses, worker: ToyWorker) -> None:
        worker.play = lambda _: play
        assert (await hivemind(addresses, "run", "--", "x")).code == code

    with_master(tmp_path, scenario)


def test_ctrl_c_cancels_the_task_and_its_end_is_followed(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, worker: ToyWorker) -> None:
        process = await start(addresses, "run", "--", "sleep", "99")
        request = await asyncio.wait_for(worker.assigned.get(), 15)
        process.send_signal(signal.SIGINT)
        cancel = await asyncio.wait_for(worker.cancelled.get(), 15)
        assert (cancel.task_id, cancel.attempt) == (request.task_id, 1)
        play = Play([(OUT, b"so far")], state=pb.TASK_STATE_CANCELLED, exit_code=137)
        await worker.deliver(request, play)
        out, err = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 137, err
        assert out == b"so far"

    with_master(tmp_path, scenario)
