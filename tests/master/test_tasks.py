"""Tasks as the contract has them: status, inputs, log, output, result, attempts, cancelling."""

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from procs.master import node_records, task_records
from procs.master.core import Demand
from procs.master.database import open_database
from procs.master.joining import Place
from procs.master.main import Addresses
from procs.master.task_records import Key
from shared.pb import hivemind_pb2 as pb
from tests.fakes.running_master import Http, with_master
from tests.fakes.toy_worker import Play, ToyWorker, chunk

WAIT_S = 10.0
OUT = pb.LOG_STREAM_STDOUT
Scenario = Callable[[Addresses, Http, ToyWorker], Awaitable[None]]


def with_worker(tmp_path: Path, scenario: Scenario, lost_after_s: float = 60.0) -> None:
    async def run(addresses: Addresses, http: Http) -> None:
        async with ToyWorker(addresses.grpc) as worker:
            await scenario(addresses, http, worker)

    with_master(tmp_path, run, lost_after_s=lost_after_s)


def records(*sequences: int) -> list[pb.LogRecord]:
    return [
        pb.LogRecord(sequence=n, stream=pb.LOG_STREAM_STDOUT, data=b"%d;" % n) for n in sequences
    ]


async def given(worker: ToyWorker, http: Http, task_id: str = "t") -> pb.TaskAssignmentRequest:
    """A task that the worker holds."""
    await http.submit(task_id=task_id)
    request = await asyncio.wait_for(worker.assigned.get(), WAIT_S)
    await http.until(task_id, "accepted")
    return request


async def logged(http: Http, task_id: str = "t") -> bytes:
    response = await http.call("GET", f"/api/v1/tasks/{task_id}/log")
    return response.content


# ------------------------------------------------------------------ status


def test_states_only_go_forward_and_final_ones_are_the_results(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        assert await worker.report(request, pb.TASK_STATE_RUNNING)
        assert await worker.report(request, pb.TASK_STATE_PREPARING)  # it came late
        assert (await http.task("t"))["state"] == "running"
        assert await worker.report(request, pb.TASK_STATE_SUCCEEDED)
        assert (await http.task("t"))["state"] == "running"

    with_worker(tmp_path, scenario)


def test_a_status_of_what_nobody_waits_for_says_so(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        await worker.deliver(request, Play())
        assert not await worker.report(request, pb.TASK_STATE_RUNNING)
        request.task_id = "unknown"
        assert not await worker.report(request, pb.TASK_STATE_RUNNING)

    with_worker(tmp_path, scenario)


def test_another_nodes_attempt_is_not_for_this_one_to_speak_of(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        async with ToyWorker(addresses.grpc) as other:
            calls = (other.report(request, pb.TASK_STATE_RUNNING), other.submit(request, Play()))
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await http.task("t"))["state"] == "accepted"

    with_worker(tmp_path, scenario)


# ------------------------------------------------------------------ inputs


def test_an_input_is_fetched_from_any_offset(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        content = os.urandom(3 * 2**20 + 5)
        one = {"path": "a/b.bin", "sha256": await http.upload(content), "size_bytes": len(content)}
        await http.submit(task_id="t", inputs=[one])
        request = await asyncio.wait_for(worker.assigned.get(), WAIT_S)
        assert request.inputs[0].sha256 == hashlib.sha256(content).digest()
        assert await worker.fetch(request, "a/b.bin") == content
        assert await worker.fetch(request, "a/b.bin", 3 * 2**20) == content[3 * 2**20 :]
        assert await worker.fetch(request, "a/b.bin", len(content)) == b""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.fetch(request, "../secrets/t")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    with_worker(tmp_path, scenario)


# ------------------------------------------------------------------ log


def test_a_log_is_stored_without_gap_and_each_record_once(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        acks = await worker.send_log(
            [
                chunk(request),
                chunk(request, records(0, 1)),
                chunk(request, records(3)),  # a gap
                chunk(request, records(2, 4)),  # a gap within
                chunk(request, records(1, 2, 3)),  # one again, two new
            ]
        )
        assert [a.next_sequence for a in acks] == [0, 2, 2, 2, 4]
        acks = await worker.send_log([chunk(request), chunk(request, records(4), end=True)])
        assert [a.next_sequence for a in acks] == [4, 5]
        lines = (await logged(http)).splitlines()
        assert [b'"sequence": %d' % n in line for n, line in enumerate(lines[:-1])] == [True] * 5

    with_worker(tmp_path, scenario)


def test_one_stream_carries_several_tasks(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        one, two = await given(worker, http, "one"), await given(worker, http, "two")
        acks = await worker.send_log(
            [chunk(one), chunk(two), chunk(one, records(0, 1)), chunk(two, records(0))]
        )
        assert [(a.task_id, a.next_sequence) for a in acks] == [
            ("one", 0),
            ("two", 0),
            ("one", 2),
            ("two", 1),
        ]

    with_worker(tmp_path, scenario)


def test_a_log_that_nobody_waits_for_is_acknowledged_and_dropped(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        await worker.deliver(request, Play([(OUT, b"a"), (OUT, b"b")]))
        acks = await worker.send_log([chunk(request), chunk(request, records(2, 3))])
        assert [a.next_sequence for a in acks] == [2, 4]
        assert len((await logged(http)).splitlines()) == 3  # two records and the task
        request.task_id = "unknown"
        acks = await worker.send_log([chunk(request), chunk(request, records(0), end=True)])
        assert [a.next_sequence for a in acks] == [0, 1]

    with_worker(tmp_path, scenario)


# ------------------------------------------------------------------ output


def test_an_output_goes_on_from_what_is_stored(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        data = os.urandom(700_000)
        sha256 = hashlib.sha256(data).digest()
        query = pb.TaskOutputQuery(task_id="t", attempt=1, sha256=sha256)

        async def cut() -> AsyncIterator[pb.TaskOutputChunk]:
            for offset in (0, 100_000, 400_000):  # the last one leaves a gap
                yield pb.TaskOutputChunk(
                    task_id="t",
                    attempt=1,
                    sha256=sha256,
                    total_bytes=len(data),
                    offset=offset,
                    data=data[offset : offset + 150_000],  # they overlap
                )

        receipt = await worker.tasks.UploadTaskOutput(cut(), timeout=WAIT_S)
        assert (receipt.stored_bytes, receipt.complete) == (250_000, False)
        receipt = await worker.tasks.QueryTaskOutput(query, timeout=WAIT_S)
        assert receipt.stored_bytes == 250_000
        assert (await worker.send_output(request, data)).complete
        assert (await worker.tasks.QueryTaskOutput(query, timeout=WAIT_S)).complete
        assert await worker.submit(request, Play(output=data))
        response = await http.call("GET", "/api/v1/tasks/t/output")
        assert response.content == data
        assert response.headers["x-sha256"] == sha256.hex()

    with_worker(tmp_path, scenario)


def test_an_output_whose_digest_does_not_hold_starts_from_nothing(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)

        async def wrong() -> AsyncIterator[pb.TaskOutputChunk]:
            yield pb.TaskOutputChunk(
                task_id="t", attempt=1, sha256=bytes(32), total_bytes=3, data=b"abc"
            )

        receipt = await worker.tasks.UploadTaskOutput(wrong(), timeout=WAIT_S)
        assert (receipt.stored_bytes, receipt.complete) == (0, False)
        assert (await worker.send_output(request, b"abc")).complete

    with_worker(tmp_path, scenario)


@pytest.mark.parametrize(
    ("sha256", "total_bytes", "code"),
    [
        pytest.param(b"short", 3, grpc.StatusCode.INVALID_ARGUMENT, id="no digest"),
        pytest.param(bytes(32), 2**40, grpc.StatusCode.RESOURCE_EXHAUSTED, id="over the limit"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    tmp_path: Path, sha256: bytes, total_bytes: int, code: grpc.StatusCode
) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        await given(worker, http)

        async def one() -> AsyncIterator[pb.TaskOutputChunk]:
            yield pb.TaskOutputChunk(
                task_id="t", attempt=1, sha256=sha256, total_bytes=total_bytes, data=b"abc"
            )

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await worker.tasks.UploadTaskOutput(one(), timeout=WAIT_S)
        assert caught.value.code() is code

    with_worker(tmp_path, scenario)


def test_an_output_that_nobody_waits_for_is_said_to_be_complete(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = pb.TaskAssignmentRequest(task_id="unknown", attempt=1)
        assert (await worker.send_output(request, b"abc")).complete
        assert list((tmp_path / "master" / "outputs").iterdir()) == []

    with_worker(tmp_path, scenario)


# ------------------------------------------------------------------ result


def test_a_result_is_acknowledged_once_all_is_there(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        play = Play([(OUT, b"a")], b"archive", reward=12)
        assert not await worker.submit(request, play)
        await worker.send_output(request, play.output)
        assert not await worker.submit(request, play)  # its log is missing
        assert (await http.task("t"))["ended"] is False
        await worker.send_log([chunk(request, records(0), end=True)])
        assert await worker.submit(request, play)
        assert await worker.submit(request, play)
        task = await http.task("t")
        assert (task["state"], task["exit_code"], task["reward"]) == ("succeeded", 0, 12)

    with_worker(tmp_path, scenario)


def test_a_state_that_is_not_final_is_no_result(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        assert not await worker.submit(request, Play(state=pb.TASK_STATE_RUNNING))

    with_worker(tmp_path, scenario)


def test_a_second_result_changes_nothing(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        assert await worker.submit(request, Play(exit_code=3, state=pb.TASK_STATE_FAILED))
        assert await worker.submit(request, Play([(OUT, b"x")], b"other", reward=99))
        task = await http.task("t")
        assert (task["state"], task["exit_code"], task["reward"]) == ("failed", 3, 8)

    with_worker(tmp_path, scenario)


@pytest.mark.parametrize(
    "cause",
    [pb.FAILURE_CAUSE_INTERRUPTED, pb.FAILURE_CAUSE_NODE, pb.FAILURE_CAUSE_REMOVED],
    ids=["interrupted", "node", "removed"],
)
def test_what_was_not_the_tasks_fault_is_tried_three_times(tmp_path: Path, cause: int) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        worker.play = lambda _: Play(
            state=pb.TASK_STATE_FAILED, exit_code=-1, cause=cause, error="power"
        )
        await http.submit(task_id="t")
        task = await http.until("t", "failed", attempt=3)
        assert (task["error"], task["exit_code"]) == ("power", -1)
        attempts = [(await worker.assigned.get()).attempt for _ in range(3)]
        assert attempts == [1, 2, 3]

    with_worker(tmp_path, scenario)


def test_the_tasks_own_failure_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        worker.play = lambda _: Play(
            state=pb.TASK_STATE_FAILED, exit_code=3, cause=pb.FAILURE_CAUSE_EXIT
        )
        await http.submit(task_id="t")
        await http.until("t", "failed", attempt=1)

    with_worker(tmp_path, scenario)


def test_a_lost_nodes_task_is_anothers_and_its_late_result_is_dropped(tmp_path: Path) -> None:
    async def scenario(addresses: Addresses, http: Http, worker: ToyWorker) -> None:
        first = await given(worker, http)
        worker.state = pb.NODE_STATE_PAUSED
        await worker.beat()
        await http.until("t", "waiting", attempt=2)
        nodes = (await http.get("/api/v1/nodes"))["nodes"]
        assert [n["state"] for n in nodes] == ["lost"]
        async with ToyWorker(addresses.grpc) as other:
            other.keep_beating()
            second = await asyncio.wait_for(other.assigned.get(), WAIT_S)
            assert (second.task_id, second.attempt) == ("t", 2)
            forget = (await worker.beat()).forget
            assert [(ref.task_id, ref.attempt) for ref in forget] == [("t", 1)]
            await worker.deliver(first, Play([(OUT, b"late")], b"late", reward=99))
            assert (await http.task("t"))["ended"] is False
            await other.deliver(second, Play(reward=9))
        task = await http.task("t")
        assert (task["state"], task["reward"], task["attempt"]) == ("succeeded", 9, 2)
        assert b"late" not in await logged(http)

    with_worker(tmp_path, scenario, lost_after_s=1.0)


# ------------------------------------------------------------------ cancelling


def test_a_task_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http) -> None:
        await http.submit(task_id="t")
        for _twice in range(2):
            assert (await http.cancel("t"))["state"] == "cancelled"

    with_master(tmp_path, scenario)


def test_a_cancelled_task_ends_with_its_result(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        assert (await http.cancel("t"))["state"] == "accepted"
        cancel = await asyncio.wait_for(worker.cancelled.get(), WAIT_S)
        assert (cancel.task_id, cancel.attempt, cancel.reason) == (
            "t",
            1,
            "cancelled by the client",
        )
        play = Play([(OUT, b"so far")], b"so far", pb.TASK_STATE_CANCELLED, 143, reward=10)
        await worker.deliver(request, play)
        task = await http.task("t")
        assert (task["state"], task["exit_code"], task["reward"]) == ("cancelled", 143, 10)

    with_worker(tmp_path, scenario)


def test_a_cancelled_task_that_its_node_does_not_know_has_ended(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        worker.held.clear()
        await http.cancel("t")
        await http.until("t", "cancelled")
        assert await worker.submit(request, Play())  # late: dropped
        assert (await http.task("t"))["state"] == "cancelled"

    with_worker(tmp_path, scenario)


def test_a_task_that_was_interrupted_while_cancelled_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        request = await given(worker, http)
        await http.cancel("t")
        play = Play(state=pb.TASK_STATE_FAILED, exit_code=-1, cause=pb.FAILURE_CAUSE_NODE)
        await worker.deliver(request, play)
        task = await http.task("t")
        assert (task["state"], task["attempt"]) == ("failed", 1)

    with_worker(tmp_path, scenario)


def test_a_task_that_was_cancelled_while_it_was_offered_ends_with_the_refusal(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        database = open_database(tmp_path / "master.db")
        run, key = database.run, Key("t", 1)
        join = pb.NodeRegistrationRequest(node_id="n")
        await run(node_records.register, join, Place("n", "", 0, ""), 1.0)
        await run(task_records.submit, pb.TaskAssignmentRequest(task_id="t"), Demand(), 1.0)
        await run(task_records.offer, key, "n")
        await run(task_records.cancel, "t", "enough", 2.0)
        await run(task_records.put_off, key, "n", 3.0)
        task = await run(task_records.task, "t")
        assert task is not None
        assert (task["state"], task["error"]) == (pb.TASK_STATE_CANCELLED, "enough")
        database.close()

    asyncio.run(scenario())


def test_a_cancelled_task_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        await given(worker, http)
        await worker.close_channel()
        await http.cancel("t")  # nobody can be told
        await http.until("t", "cancelled")

    with_worker(tmp_path, scenario, lost_after_s=0.5)


# ------------------------------------------------------------------ secrets


def test_secrets_reach_the_node_and_stay_nowhere(tmp_path: Path) -> None:
    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        await http.submit(task_id="t", secrets={"TOKEN": "hush-hush"})
        request = await asyncio.wait_for(worker.assigned.get(), WAIT_S)
        assert dict(request.secrets) == {"TOKEN": "hush-hush"}
        kept = tmp_path / "master" / "secrets" / "t"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert "hush-hush" not in str(await http.task("t"))
        await worker.deliver(request, Play())
        assert not kept.exists()

    with_worker(tmp_path, scenario)
    for path in (tmp_path / "master").rglob("*"):
        assert not path.is_file() or b"hush-hush" not in path.read_bytes()


def test_the_database_is_whole(tmp_path: Path) -> None:
    """WAL, and every write synced: what was acknowledged survives a power cut."""

    async def scenario(_: Addresses, http: Http, worker: ToyWorker) -> None:
        await given(worker, http)

    with_worker(tmp_path, scenario)
    connection = sqlite3.connect(tmp_path / "master" / "master.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
