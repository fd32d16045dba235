"""The master as a process: its command line, and nothing lost when it is killed."""

import asyncio
import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from procs.master.cli import app
from procs.master.files import Files, FilesError
from shared.pb import hivemind_pb2 as pb
from tests.fakes.running_master import REPOSITORY, Http, MasterProcess
from tests.fakes.toy_worker import Play, ToyWorker, chunk

OUT = pb.LOG_STREAM_STDOUT
WAIT_S = 15.0


def with_process(tmp_path: Path, scenario: Callable[[MasterProcess], Awaitable[None]]) -> None:
    async def run() -> None:
        master = MasterProcess(tmp_path / "master")
        await master.start()
        try:
            await scenario(master)
        finally:
            await master.kill()

    asyncio.run(run())


def records(*sequences: int) -> list[pb.LogRecord]:
    return [pb.LogRecord(sequence=n, stream=OUT, data=b"%d;" % n) for n in sequences]


async def come_back(worker: ToyWorker) -> None:
    """As a worker does that was cut off: channel and heartbeat, no new registration."""
    async with asyncio.timeout(WAIT_S):
        await worker.open_channel()
    assert worker.hello is not None
    assert not worker.hello.reregister
    await worker.beat()


OUTPUT = bytes(range(256)) * 2500
DIGEST = hashlib.sha256(OUTPUT).digest()


async def leave_something_in_every_state(http: Http, worker: ToyWorker) -> pb.TaskAssignmentRequest:
    await http.submit(task_id="done")
    done = await worker.assigned.get()
    await worker.deliver(done, Play([(OUT, b"all")], OUTPUT))
    await http.submit(task_id="half", secrets={"A": "b"})
    half = await worker.assigned.get()
    await http.until("half", "accepted")
    await worker.report(half, pb.TASK_STATE_RUNNING)
    await worker.send_log([chunk(half), chunk(half, records(0, 1))])
    part = pb.TaskOutputChunk(
        task_id="half", attempt=1, sha256=DIGEST, total_bytes=len(OUTPUT), data=OUTPUT[:9]
    )
    await worker.tasks.UploadTaskOutput(iter([part]), timeout=WAIT_S)
    await http.submit(task_id="doomed")
    await worker.assigned.get()
    await http.until("doomed", "accepted")
    await worker.close_channel()  # from here on nobody hears the master
    await http.cancel("doomed")
    await http.submit(task_id="offered")
    await http.until("offered", "offered")
    await http.submit(task_id="waits", labels={"no": "where"})
    return half


async def find_everything_again(
    http: Http, worker: ToyWorker, half: pb.TaskAssignmentRequest
) -> None:
    assert (await http.task("waits"))["state"] == "waiting"
    assert (await http.task("half"))["state"] == "running"
    assert (await http.call("GET", "/api/v1/tasks/done/output")).content == OUTPUT
    again = await asyncio.wait_for(worker.assigned.get(), WAIT_S)
    assert (again.task_id, again.attempt) == ("offered", 1)
    cancel = await asyncio.wait_for(worker.cancelled.get(), WAIT_S)
    assert cancel.task_id == "doomed"
    (ack,) = await worker.send_log([chunk(half)])
    assert ack.next_sequence == 2
    query = pb.TaskOutputQuery(task_id="half", attempt=1, sha256=DIGEST)
    receipt = await worker.tasks.QueryTaskOutput(query, timeout=WAIT_S)
    assert receipt.stored_bytes == 9
    assert (await worker.send_output(half, OUTPUT)).complete
    await worker.send_log([chunk(half, records(2), end=True)])
    assert await worker.submit(half, Play([(OUT, b"")] * 3, OUTPUT))


def test_nothing_is_lost_when_the_master_is_killed(tmp_path: Path) -> None:
    async def scenario(master: MasterProcess) -> None:
        http = Http(f"http://{master.http}")
        async with ToyWorker(master.grpc) as worker:
            half = await leave_something_in_every_state(http, worker)
            await master.kill()
            await master.start()
            await come_back(worker)
            await find_everything_again(http, worker, half)
            await master.kill()
            await master.start()
            assert (await http.task("half"))["state"] == "succeeded"
            assert await worker.submit(half, Play(reward=99))  # its answer may have been lost
            assert (await http.task("half"))["reward"] == 8

    with_process(tmp_path, scenario)


def test_a_node_that_was_silent_only_to_a_dead_master_is_not_lost(tmp_path: Path) -> None:
    async def scenario(master: MasterProcess) -> None:
        async with ToyWorker(master.grpc):
            await master.kill()
            with_old_heartbeats(tmp_path / "master" / "master.db")
            await master.start()
            http = Http(f"http://{master.http}")
            await http.submit(task_id="t")  # the loop has gone round once it is placed
            await http.until("t", "offered")
            (node,) = (await http.get("/api/v1/nodes"))["nodes"]
            assert node["state"] == "ready"

    with_process(tmp_path, scenario)


def with_old_heartbeats(path: Path) -> None:
    """As if the master had been down for an hour."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE nodes SET heard_unix_s = heard_unix_s - 3600")
    connection.commit()
    connection.close()


def test_the_master_ends_when_told(tmp_path: Path) -> None:
    async def scenario(master: MasterProcess) -> None:
        async with ToyWorker(master.grpc):  # with a channel open
            assert await master.stop() == 0

    with_process(tmp_path, scenario)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param(("--listen", "0.0.0.0:50051"), "--host is needed", id="all addresses"),
        pytest.param(("--http", "192.0.2.1:80"), "cannot listen on 192.0.2.1", id="not of ours"),
        pytest.param(("--join", "127.0.0.1:1"), "nodes join at --listen", id="join without TLS"),
        pytest.param(("--listen", "localhost"), "it must be HOST:PORT", id="no port"),
        pytest.param(("--http", "localhost:70000"), "it must be HOST:PORT", id="no such port"),
        pytest.param(("--data", "/proc/nothing"), "cannot use /proc/nothing", id="no directory"),
    ],
)
def test_wrong_settings_are_one_clear_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    ran = CliRunner().invoke(app, ["serve", "--data", str(tmp_path / "d"), *arguments])
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert text in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_broken_database_is_one_clear_line_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "master.db").write_bytes(b"this is no database, and long enough to be read as one")
    ran = subprocess.run(
        [sys.executable, "-m", "procs.master", "serve", "--data", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 2
    assert "cannot use the database" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert (tmp_path / "master.db").read_bytes().startswith(b"this is")


def test_one_master_for_each_directory(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with pytest.raises(FilesError, match="another master runs"):
        Files(tmp_path)
    files.close()
    Files(tmp_path).close()
