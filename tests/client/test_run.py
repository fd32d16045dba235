"""`hivemind run` as a real process, against a real master and a toy worker."""

import asyncio
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from procs.client.main import app
from procs.master.main import Addresses
from shared.pb import hivemind_pb2 as pb
from tests.fakes.running_master import REPOSITORY, Http, MasterProcess, with_master
from tests.fakes.toy_worker import Play, ToyWorker, chunk

OUT, ERR, WORKER = pb.LOG_STREAM_STDOUT, pb.LOG_STREAM_STDERR, pb.LOG_STREAM_WORKER


class Ran(NamedTuple):
    code: int
    out: bytes
    err: bytes


async def start(url: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "procs.client",
        *arguments,
        cwd=REPOSITORY,
        env=os.environ | {"HIVEMIND_MASTER": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def hivemind(url: str, *arguments: str) -> Ran:
    process = await start(url, *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return Ran(process.returncode, out, err)


def with_worker(tmp_path: Path, scenario: Callable[[str, ToyWorker], Awaitable[None]]) -> None:
    """`scenario` is given the master's URL."""

    async def run(addresses: Addresses, _: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            await scenario(addresses.http, worker)

    with_master(tmp_path, run)


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

    async def scenario(url: str, worker: ToyWorker) -> None:
        worker.play = play
        ran = await hivemind(
            url,
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

    with_worker(tmp_path, scenario)
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
    async def scenario(url: str, worker: ToyWorker) -> None:
        worker.play = lambda _: play
        assert (await hivemind(url, "run", "--", "x")).code == code

    with_worker(tmp_path, scenario)


def test_ctrl_c_cancels_the_task_and_its_end_is_followed(tmp_path: Path) -> None:
    async def scenario(url: str, worker: ToyWorker) -> None:
        process = await start(url, "run", "--", "sleep", "99")
        request = await asyncio.wait_for(worker.assigned.get(), 15)
        process.send_signal(signal.SIGINT)
        cancel = await asyncio.wait_for(worker.cancelled.get(), 15)
        assert (cancel.task_id, cancel.attempt) == (request.task_id, 1)
        play = Play([(OUT, b"so far")], state=pb.TASK_STATE_CANCELLED, exit_code=137)
        await worker.deliver(request, play)
        out, err = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 137, err
        assert out == b"so far"

    with_worker(tmp_path, scenario)


def test_a_run_outlives_its_master(tmp_path: Path) -> None:
    async def run() -> None:
        master = MasterProcess(tmp_path / "master")
        await master.start()
        try:
            async with ToyWorker(master.grpc) as worker:
                process = await start(f"http://{master.http}", "run", "--", "x")
                request = await asyncio.wait_for(worker.assigned.get(), 15)
                first = pb.LogRecord(sequence=0, stream=OUT, data=b"first;")
                await worker.send_log([chunk(request), chunk(request, [first])])
                assert process.stdout is not None
                assert await asyncio.wait_for(process.stdout.readexactly(6), 15) == b"first;"
                await master.kill()
                await master.start()
                await worker.deliver(request, Play([(OUT, b"first;"), (OUT, b"second")]))
                out, err = await asyncio.wait_for(process.communicate(), 30)
                assert (out, process.returncode) == (b"second", 0), err
        finally:
            await master.kill()

    asyncio.run(run())


def test_a_task_that_waits_says_for_what_and_ends_without_a_node(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http) -> None:
        process = await start(addresses.http, "run", "--", "x")
        assert process.stderr is not None
        line = await asyncio.wait_for(process.stderr.readline(), 15)
        assert line == b"hivemind: waiting: no node has joined yet\n"
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 15)
        assert process.returncode == 125
        assert err.endswith(b" cancelled: cancelled by the client\n")

    with_master(tmp_path, scenario)


def test_output_that_would_leave_its_directory_is_our_failure(tmp_path: Path) -> None:
    async def scenario(url: str, worker: ToyWorker) -> None:
        worker.play = lambda _: Play(output=archive(**{"../evil": b"x"}))
        ran = await hivemind(url, "run", "--output", str(tmp_path / "out"), "--", "x")
        assert ran.code == 125
        assert b"would leave its directory" in ran.err
        assert not (tmp_path / "evil").exists()

    with_worker(tmp_path, scenario)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param(("nodes",), "no master answers at", id="no master"),
        pytest.param(("run", "--memory", "lots", "--", "x"), "is no size", id="memory"),
        pytest.param(("run", "--input", "/nowhere", "--", "x"), "No such file", id="input"),
        pytest.param(("run", "--env", "A", "--", "x"), "KEY=VALUE", id="env"),
        pytest.param(("run", "--output", "/dev/null", "--", "x"), "--output", id="output"),
    ],
)
def test_our_own_failure_is_125_and_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.setenv("HIVEMIND_MASTER", "http://127.0.0.1:1")
    ran = CliRunner().invoke(app, list(arguments))
    assert (ran.exit_code, ran.stdout) == (125, "")
    assert text in ran.stderr
    assert ran.stderr.count("\n") == 1


async def command(url: str, *arguments: str) -> Ran:
    """A command that needs no process of its own."""
    result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--master", url])
    return Ran(result.exit_code, result.stdout_bytes, result.stderr_bytes)


def test_nodes_tasks_logs_and_cancel(tmp_path: Path) -> None:
    async def scenario(url: str, worker: ToyWorker) -> None:
        worker.play = lambda _: Play([(OUT, b"o\xff"), (ERR, b"e")], exit_code=0)
        assert (await hivemind(url, "run", "--", "x")).code == 0
        (node,) = json.loads((await command(url, "nodes", "--json")).out)
        assert (node["node_id"], node["state"]) == (worker.node_id, "ready")
        (task,) = json.loads((await command(url, "tasks", "--json")).out)
        assert (task["state"], task["exit_code"], task["reward"]) == ("succeeded", 0, 8)
        assert b"ready" in (await command(url, "nodes")).out
        assert b"succeeded" in (await command(url, "tasks")).out
        logs = await command(url, "logs", task["task_id"])
        assert logs == (0, b"o\xff", b"e")
        assert await command(url, "logs", "-f", task["task_id"]) == logs
        lines = (await command(url, "logs", "--json", task["task_id"])).out.splitlines()
        assert [json.loads(line)["stream"] for line in lines] == ["stdout", "stderr"]
        again = await command(url, "cancel", "--json", task["task_id"])
        assert json.loads(again.out)["state"] == "succeeded"
        none = await command(url, "cancel", "none")
        assert (none.code, none.err) == (125, b"hivemind: there is no task none\n")

    with_worker(tmp_path, scenario)


@pytest.mark.parametrize(
    ("order", "state"),
    [
        ("drain", pb.NODE_STATE_DRAINING),
        ("pause", pb.NODE_STATE_PAUSED),
        ("resume", pb.NODE_STATE_READY),
    ],
)
def test_a_node_is_told_what_it_should_be(
    tmp_path: Path, order: str, state: pb.NodeState
) -> None:
    async def scenario(url: str, worker: ToyWorker) -> None:
        ran = await command(url, "nodes", order, worker.node_id)
        assert ran.code == 0, ran.err
        assert (await worker.beat()).desired_state == state
        ran = await command(url, "nodes", order, "nobody")
        assert (ran.code, ran.err) == (125, b"hivemind: there is no node nobody\n")

    with_worker(tmp_path, scenario)
