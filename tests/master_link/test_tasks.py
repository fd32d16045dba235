"""A task's way through master_link: assigned, reported, delivered, kept; by the contract."""

import asyncio
import contextlib
import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest

from shared.messages import StopReason, TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey, read_spec
from tests.master_link.rig import Rig, request, rig, task_input

KEY = TaskKey("t", 1)
PHASE_SENT = "SELECT phase_sent FROM attempts"


def test_a_task_is_reported_in_order_and_delivered_whole() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY, command=["true"])
            r.executor.move(KEY, TaskPhase.PREPARING)
            r.executor.move(KEY, TaskPhase.RUNNING)
            r.executor.log(KEY).write(b"live\n")
            await r.until(lambda: r.master.memory.log(KEY) == b"live\n")
            assert KEY not in r.master.memory.ended
            r.executor.move(KEY, TaskPhase.COLLECTING)
            r.executor.log(KEY).write(b"\xff last \x00\n" * 100_000)
            r.executor.output = b"o" * 600_000
            r.executor.finish(KEY, cpu_pct_average=90.0, memory_pct_average=80.0)
            result = await r.delivered(KEY)
            memory = r.master.memory
            assert memory.states(KEY) == ["PREPARING", "RUNNING", "COLLECTING"]
            assert memory.log(KEY) == b"live\n" + b"\xff last \x00\n" * 100_000
            assert bytes(memory.outputs[KEY]) == r.executor.output
            assert result.state == pb.TASK_STATE_SUCCEEDED
            assert result.log_records == len(memory.logs[KEY])
            assert result.output.sha256 == hashlib.sha256(r.executor.output).digest()
            assert result.reward == 15
            kept = await r.kept(KEY)
            assert (kept / "result").read_bytes() == memory.results[KEY][0]
            await r.until(lambda: r.executor.held == {})

    asyncio.run(scenario())


def test_each_status_is_on_record_before_the_next_is_told() -> None:
    """A life that begins in between tells none that comes before one that was told."""

    async def scenario() -> None:
        async with rig(runs=True) as r:
            recorded: list[str] = []

            def on_status(status: pb.TaskStatusRequest) -> None:
                where = f"file:{r.home}/lib/link.db?mode=ro"
                with contextlib.closing(sqlite3.connect(where, uri=True)) as database:
                    recorded.extend(row[0] for row in database.execute(PHASE_SENT))

            r.master.on_status = on_status
            await r.assign(KEY)
            await r.delivered(KEY)
            assert r.master.memory.states(KEY) == ["PREPARING", "RUNNING", "COLLECTING"]
            assert recorded == ["preparing", "running"]

    asyncio.run(scenario())


def test_what_is_accepted_is_on_disk_and_no_secret_is_in_the_spec() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(
                KEY,
                secrets={"TOKEN": "sesame"},
                environment={"A": "b"},
                inputs=[task_input("in/a.txt", b"abc", inline=True), task_input("empty", b"")],
            )
            directory = r.executor.directory(KEY)
            spec = read_spec(directory)
            assert spec.secret_names == ("TOKEN",)
            assert spec.environment == {"A": "b"}
            assert spec.image == "image:default"
            assert "sesame" not in (directory / "spec").read_text()
            assert b"sesame" not in (r.home / "lib" / "link.db").read_bytes()
            assert json.loads((directory / "secrets").read_text()) == {"TOKEN": "sesame"}
            assert (directory / "secrets").stat().st_mode & 0o777 == 0o600
            assert (directory / "blobs" / "0").read_bytes() == b"abc"
            assert (directory / "blobs" / "1").read_bytes() == b""

    asyncio.run(scenario())


def test_a_repeated_assignment_changes_nothing_and_other_content_is_invalid() -> None:
    async def scenario() -> None:
        async with rig() as r:
            first = request(command=["a"], secrets={"S": "1"})
            assert (await r.master.assign(first)).accepted
            assert (await r.master.assign(first)).accepted
            other = await r.master.assign(request(command=["b"], secrets={"S": "1"}))
            assert other.refusal == pb.REFUSAL_INVALID
            assert "other content" in other.reason
            assert len(list((r.home / "tasks").iterdir())) == 1

    asyncio.run(scenario())


def test_a_higher_attempt_supersedes_and_a_lower_one_is_invalid() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(TaskKey("t", 2))
            await r.assign(TaskKey("t", 3))
            held, older = r.executor.held, TaskKey("t", 2)
            await r.until(lambda: older not in held or held[older].phase.is_final)
            assert r.executor.want is not None
            stops = {task.attempt: task.stop for task in r.executor.want.tasks}
            assert stops.get(2, StopReason.SUPERSEDED) is StopReason.SUPERSEDED
            assert stops[3] is None
            lower = await r.master.assign(request("t", 1))
            assert lower.refusal == pb.REFUSAL_INVALID
            assert lower.reason.startswith("attempt")
            result = await r.delivered(TaskKey("t", 2))
            assert result.state == pb.TASK_STATE_CANCELLED

    asyncio.run(scenario())


def test_a_delivered_attempt_is_delivered_again_the_same_bytes() -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            r.executor.output = b"archive"
            assert (await r.master.assign(request())).accepted
            await r.delivered(KEY)
            await r.kept(KEY)
            memory = r.master.memory
            memory.logs.clear()
            memory.outputs.clear()
            memory.ended.clear()
            assert (await r.master.assign(request())).accepted
            await r.delivered(KEY, times=2)
            assert memory.results[KEY][0] == memory.results[KEY][1]
            assert memory.log(KEY) == b"hello\n"
            assert bytes(memory.outputs[KEY]) == b"archive"
            assert memory.states(KEY) == ["PREPARING", "RUNNING", "COLLECTING"]
            assert r.executor.held == {}

    asyncio.run(scenario())


def test_what_is_kept_no_more_is_delivered_before() -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            assert (await r.master.assign(request())).accepted
            kept = await r.kept(KEY)
            assert r.link is not None
            await r.until(lambda: r.link is not None and KEY not in r.link.desk.attempts)
            await r.link.desk.trim(kept.stat().st_mtime + 2 * 86400)
            assert not kept.exists()
            answer = await r.master.assign(request())
            assert answer.refusal == pb.REFUSAL_INVALID
            assert "delivered before" in answer.reason

    asyncio.run(scenario())


def test_a_kept_directory_that_is_gone_is_delivered_before() -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            assert (await r.master.assign(request())).accepted
            shutil.rmtree(await r.kept(KEY))
            answer = await r.master.assign(request())
            assert answer.refusal == pb.REFUSAL_INVALID
            assert "delivered before" in answer.reason

    asyncio.run(scenario())


def test_past_the_room_for_it_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            keys = [TaskKey(f"t{number}", 1) for number in range(3)]
            for key in keys:
                assert (await r.master.assign(request(key.task_id))).accepted
                kept = await r.kept(key)
            assert r.link is not None
            desk = r.link.desk
            await r.until(lambda: not desk.attempts)
            one_bytes = sum(path.stat().st_blocks * 512 for path in kept.iterdir())
            monkeypatch.setattr("procs.master_link.desk.KEPT_BYTES", one_bytes * 2.5)
            await desk.trim(time.time())
            names = {path.name for path in (r.home / "kept").iterdir()}
            assert names == {"t1.1", "t2.1"}

    asyncio.run(scenario())


def test_what_a_crash_left_in_the_middle_of_keeping_counts_with_its_size() -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            assert (await r.master.assign(request())).accepted
            await r.kept(KEY)
            await r.stop_link()
            with contextlib.closing(sqlite3.connect(r.home / "lib" / "link.db")) as database:
                database.execute("UPDATE attempts SET stage = 'delivered', size_bytes = 0")
                database.commit()
            r.master.channel = None
            link = await r.start_link()
            await r.connected()
            (row,) = await link.desk.records.run(link.desk.records.store.kept)
            assert row.key == KEY
            assert row.size_bytes > 0

    asyncio.run(scenario())


def test_cancel_ends_a_task_once_and_answers_the_same_twice() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            r.master.acknowledge = lambda key: False
            first = await r.master.cancel(KEY, "enough")
            assert first.known
            result = await r.delivered(KEY)
            assert result.state == pb.TASK_STATE_CANCELLED
            assert result.error == "enough"
            again = await r.master.cancel(KEY, "enough")
            assert again.known
            assert again.state == pb.TASK_STATE_CANCELLED

    asyncio.run(scenario())


def test_a_cancel_that_comes_first_is_remembered_over_a_restart() -> None:
    async def scenario() -> None:
        async with rig() as r:
            assert not (await r.master.cancel(KEY, "early")).known
            await r.stop_link()
            r.master.channel = None
            await r.start_link()
            await r.connected()
            assert (await r.master.assign(request())).accepted
            result = await r.delivered(KEY)
            assert result.state == pb.TASK_STATE_CANCELLED
            assert result.error == "early"
            assert not r.executor.logs

    asyncio.run(scenario())


def test_a_forgotten_task_is_stopped_and_delivers_nothing() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            r.executor.move(KEY, TaskPhase.RUNNING)
            await r.until(lambda: KEY in r.master.memory.opened)
            r.master.heartbeat_answer.forget.add(task_id="t", attempt=1)
            await r.until(lambda: not r.executor.held)
            await r.until(lambda: not r.executor.directory(KEY).exists())
            await asyncio.gather(r.assign(TaskKey("next", 1)), _run(r, TaskKey("next", 1)))
            await r.delivered(TaskKey("next", 1))
            assert KEY not in r.master.memory.results
            answer = await r.master.assign(request())
            assert answer.refusal == pb.REFUSAL_INVALID

    asyncio.run(scenario())


async def _run(r: Rig, key: TaskKey) -> None:
    await r.until(lambda: key in r.executor.held)
    r.executor.run(key)


def test_an_unwanted_task_is_stopped() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            r.master.wanted = False
            r.executor.move(KEY, TaskPhase.PREPARING)
            result = await r.delivered(KEY)
            assert result.state == pb.TASK_STATE_CANCELLED

    asyncio.run(scenario())


def test_a_phase_is_told_only_when_the_one_before_is_on_disk() -> None:
    """Else a crash in between would tell an earlier phase after a later one."""
    stored: list[str] = []

    async def scenario() -> None:
        async with rig(runs=True) as r:
            path = f"file:{r.home}/lib/link.db?mode=ro"

            def look(status: pb.TaskStatusRequest) -> None:
                with contextlib.closing(sqlite3.connect(path, uri=True)) as database:
                    row = database.execute("SELECT phase_sent FROM attempts").fetchone()
                stored.append(str(row[0] or "") if row else "")

            r.master.on_status = look
            await r.assign(KEY)
            await r.delivered(KEY)

    asyncio.run(scenario())
    assert stored == ["", TaskPhase.PREPARING, TaskPhase.RUNNING]


def test_what_is_forgotten_after_its_result_was_sent_is_kept_for_a_day() -> None:
    """A heartbeat crosses the result: the master has its end, and may ask for it again."""

    async def scenario() -> None:
        async with rig(runs=True) as r:
            sent = asyncio.Event()

            def on_result(key: TaskKey) -> None:
                r.master.heartbeat_answer.forget.add(task_id="t", attempt=1)
                sent.set()

            r.master.on_result = on_result
            r.master.acknowledge = lambda key: False
            await r.assign(KEY)
            await asyncio.wait_for(sent.wait(), 20)
            kept = r.home / "kept" / "t.1" / "result"
            await r.until(kept.exists)
            await r.until(lambda: r.link is not None and KEY not in r.link.desk.attempts)
            assert r.link is not None
            await r.link.desk.trim(time.time())
            assert kept.exists()
            await r.link.desk.trim(time.time() + 2 * 86400)
            assert not kept.exists()

    asyncio.run(scenario())


def test_progress_goes_out_and_accepted_only_with_a_reason() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            r.executor.move(KEY, TaskPhase.ACCEPTED, "waits for memory")
            await r.until(lambda: r.master.memory.states(KEY) == ["ACCEPTED"])
            for percent in range(0, 100, 10):
                r.executor.move(KEY, TaskPhase.PREPARING, f"pulling {percent}%")
            statuses = r.master.memory.statuses
            await r.until(lambda: statuses[KEY][-1].detail == "pulling 90%")
            assert len(statuses[KEY]) <= 3

    asyncio.run(scenario())


def test_inputs_are_fetched_from_where_they_stopped() -> None:
    content = bytes(range(256)) * 4000

    async def scenario() -> None:
        async with rig() as r:
            r.master.memory.inputs["big"] = content
            await r.assign(KEY, inputs=[task_input("big", content)])
            blobs = r.executor.directory(KEY) / "blobs"
            (blobs / "0.part").write_bytes(content[:1000])
            assert r.master.memory.input_offsets == []
            r.executor.move(KEY, TaskPhase.PREPARING)
            await r.until((blobs / "0").exists)
            assert (blobs / "0").read_bytes() == content
            assert r.master.memory.input_offsets == [1000]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        pytest.param(b"", "the master has it not", id="not there"),
        pytest.param(b"more", "more than the 3 bytes", id="more than announced"),
    ],
)
def test_an_input_that_can_not_be_had_is_named(extra: bytes, sentence: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            if extra:
                r.master.memory.inputs["in"] = b"abc"
                r.master.extra_input = extra
            await r.assign(KEY, inputs=[task_input("in", b"abc")])
            r.executor.move(KEY, TaskPhase.PREPARING)
            missing = r.executor.directory(KEY) / "blobs" / "0.missing"
            await r.until(missing.exists)
            assert sentence in missing.read_text()

    asyncio.run(scenario())


def test_a_master_that_hangs_in_a_stream_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("procs.master_link.master_edge.STALL_S", 0.3)
        async with rig() as r:
            r.master.memory.inputs["in"] = b"abc"
            r.master.hangs = 1
            await r.assign(KEY, inputs=[task_input("in", b"abc")])
            r.executor.move(KEY, TaskPhase.PREPARING)
            await r.until((r.executor.directory(KEY) / "blobs" / "0").exists)
            assert r.master.memory.input_offsets == [0, 0]
            r.master.hangs = 1
            r.executor.output = b"z" * 1000
            r.executor.finish(KEY)
            await r.delivered(KEY)
            assert r.master.hangs == 0
            assert bytes(r.master.memory.outputs[KEY]) == r.executor.output

    asyncio.run(scenario())


async def _result_lost(r: Rig) -> None:
    r.master.fail["SubmitTaskResult"] = grpc.StatusCode.INTERNAL
    await r.delivered(KEY)
    r.master.fail.clear()


async def _not_acknowledged(r: Rig) -> None:
    r.master.acknowledge = lambda key: False
    await r.delivered(KEY)
    r.master.acknowledge = lambda key: True


async def _log_broken(r: Rig) -> None:
    r.master.fail["StreamTaskLogs"] = grpc.StatusCode.INTERNAL
    await r.until(lambda: r.executor.held.get(KEY) is not None)
    r.master.fail.clear()


async def _upload_cut(r: Rig) -> None:
    r.master.fail["UploadTaskOutput"] = grpc.StatusCode.INTERNAL
    await r.until(lambda: KEY in r.master.memory.offsets)
    r.master.fail.clear()


async def _master_restarted(r: Rig) -> None:
    r.master.acknowledge = lambda key: False
    await r.delivered(KEY)
    await r.master.stop_grpc()
    r.master.acknowledge = lambda key: True
    await r.master.start()


@pytest.mark.parametrize(
    "trouble",
    [_result_lost, _not_acknowledged, _log_broken, _upload_cut, _master_restarted],
)
def test_a_delivery_begins_again_from_what_the_master_has(
    trouble: Callable[[Rig], Awaitable[None]],
) -> None:
    """The fake master asserts that nothing comes twice."""

    async def scenario() -> None:
        async with rig(runs=True) as r:
            r.executor.output = b"z" * 1_000_000
            _, answer = await asyncio.gather(trouble(r), r.master.assign(request()))
            assert answer.accepted
            await r.kept(KEY)
            memory = r.master.memory
            assert len(set(memory.results[KEY])) == 1
            assert memory.log(KEY) == b"hello\n"
            assert bytes(memory.outputs[KEY]) == r.executor.output
            assert memory.offsets[KEY] == sorted(set(memory.offsets[KEY]))

    asyncio.run(scenario())


def test_thirty_tasks_at_once_are_all_delivered() -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            keys = [TaskKey(f"t{number}", 1) for number in range(30)]
            answers = await asyncio.gather(*(r.master.assign(request(k.task_id)) for k in keys))
            assert all(answer.accepted for answer in answers)
            for key in keys:
                await r.kept(key)
            assert all(r.master.memory.log(key) == b"hello\n" for key in keys)
            assert r.link_state().undelivered_tasks == 0

    asyncio.run(scenario())


def test_a_task_that_forges_its_figures_is_delivered_all_the_same() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            r.executor.move(KEY, TaskPhase.RUNNING)
            r.executor.finish(KEY, oom_kills=2**63 - 1, memory_peak_bytes=2**63 - 1)
            result = await r.delivered(KEY)
            assert result.report.oom_kills == 2**32 - 1
            assert result.report.memory_peak_bytes == 2**63 - 1

    asyncio.run(scenario())


def test_a_delivery_that_is_forgotten_ends() -> None:
    async def scenario() -> None:
        async with rig(runs=True) as r:
            assert (await r.master.assign(request())).accepted
            await r.kept(KEY)
            assert r.link is not None
            await r.until(lambda: r.link is not None and KEY not in r.link.desk.attempts)
            r.master.memory.results.clear()
            r.master.fail["StreamTaskLogs"] = grpc.StatusCode.INTERNAL
            assert (await r.master.assign(request())).accepted
            await r.until(lambda: r.link_state().undelivered_tasks == 1)
            r.master.heartbeat_answer.forget.add(task_id="t", attempt=1)
            r.link.session.heartbeat_due.set()
            await r.until(lambda: r.link_state().undelivered_tasks == 0)
            await r.until(lambda: r.link is not None and not r.link.session._couriers)
            assert KEY not in r.master.memory.results

    asyncio.run(scenario())


def test_reasons_without_end_are_cut() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.assign(KEY)
            assert (await r.master.cancel(KEY, "why " * 10**6)).known
            result = await r.delivered(KEY)
            assert len(result.error) == 1000
            answer = await r.master.assign(request("u", environment={"=" * 10**6: ""}))
            assert answer.refusal == pb.REFUSAL_INVALID
            assert len(answer.reason) <= 1000

    asyncio.run(scenario())


def test_a_database_that_can_not_be_read_now_makes_the_node_busy() -> None:
    async def scenario() -> None:
        async with rig() as r:
            assert r.link is not None
            store = r.link.desk.records.store
            await r.link.desk.records.run(store._db.execute, "ALTER TABLE cancels RENAME TO away")
            answer = await r.master.assign(request())
            assert answer.refusal == pb.REFUSAL_BUSY
            assert answer.retry_after.seconds > 0
            await r.link.desk.records.run(store._db.execute, "ALTER TABLE away RENAME TO cancels")
            assert (await r.master.assign(request())).accepted

    asyncio.run(scenario())


def test_malformed_is_invalid_and_names_the_field() -> None:
    async def scenario() -> None:
        async with rig() as r:
            answer = await r.master.assign(request("bad/id"))
            assert answer.refusal == pb.REFUSAL_INVALID
            assert answer.reason.startswith("task_id")
            assert list((r.home / "tasks").iterdir()) == []

    asyncio.run(scenario())
