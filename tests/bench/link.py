"""What the link costs beside bare gRPC, as ratios from one run, each in turns with its bare
counterpart: two processes, the same messages.

    python -m tests.bench.link [--rounds 5] [--mb 200] [--calls 10]

AssignTask, durable on disk, at most 3 times a bare unary call. An output and a log, from the
executor's last word until the master has acknowledged the task's result: at least 0.8 of what a
bare stream of the same chunks carries, to a master that keeps nothing, as the bare one does. What
the reference master adds, which stores, syncs and checks the digest, is told beside it.
"""

import argparse
import asyncio
import hashlib
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio

from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import ARCHIVE, TaskKey
from shared.tasklog import MOST_DATA_BYTES
from tests.fakes.line import MIB, NOTHING, PROGRAMS, BusyExecutor, Where, line
from tests.fakes.supervised import supervised
from tests.master_link.rig import measuring, short_home
from tests.system.whole import free_port

MOST_ASSIGN, LEAST_STREAM = 3.0, 0.8
CHUNK_BYTES = 256 * 1024
RECORD_BYTES = MOST_DATA_BYTES  # as the keeper writes a loud task's: 4 to a chunk
LONGEST_S = 120.0
POLL_S = 0.002

Step = Callable[[], Awaitable[float]]
Assign = Callable[[str], Awaitable[object]]


@asynccontextmanager
async def bare_server() -> AsyncIterator[tuple[Any, str]]:
    """Its stub and its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.bare_server", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    address, url = (await process.stdout.readline()).decode().split()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield pb_grpc.TaskServiceStub(channel), url  # type: ignore[no-untyped-call]
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def link_to(url: str) -> AsyncIterator[tuple[BusyExecutor, Any]]:
    """A master_link process; its executor, and a stub to call it."""
    address = f"127.0.0.1:{free_port()}"
    with short_home() as home:
        executor = BusyExecutor(home, NOTHING)
        (home / "worker.conf").write_text(f"TASK_LISTEN={address}\n")
        try:
            async with measuring(home), grpc.aio.insecure_channel(address) as channel:
                told = {"MASTER_NODE_URL": url, "HIVEMIND_HOME": str(home)}
                with supervised(PROGRAMS, **told) as worker:  # type: ignore[arg-type]
                    await channel.channel_ready()
                    yield executor, pb_grpc.TaskServiceStub(channel)  # type: ignore[no-untyped-call]
                    await asyncio.to_thread(worker.stop)
        finally:
            await executor.close()


class Bare:
    """gRPC alone, its messages made before; each returns its seconds."""

    def __init__(self, stub: Any, content: bytes) -> None:
        self.stub = stub
        self._outputs = [
            pb.TaskOutputChunk(
                task_id="bare", attempt=1, sha256=bytes(32), total_bytes=len(content),
                offset=at, data=content[at : at + CHUNK_BYTES],
            )
            for at in range(0, len(content), CHUNK_BYTES)
        ]  # fmt: skip
        records = [
            pb.LogRecord(
                sequence=n, data=content[at : at + RECORD_BYTES], stream="LOG_STREAM_STDOUT"
            )
            for n, at in enumerate(range(0, len(content), RECORD_BYTES))
        ]
        self._logs = [
            pb.TaskLogChunk(task_id="bare", attempt=1, records=records[at : at + 4])
            for at in range(0, len(records), 4)
        ]

    async def upload(self) -> float:
        began_s = time.perf_counter()
        call = self.stub.UploadTaskOutput(timeout=LONGEST_S)
        for chunk in self._outputs:
            await call.write(chunk)
        await call.done_writing()
        await call
        return time.perf_counter() - began_s

    async def log(self) -> float:
        began_s = time.perf_counter()
        call = self.stub.StreamTaskLogs(timeout=LONGEST_S)
        reading = asyncio.create_task(_read_all(call))
        for chunk in self._logs:
            await call.write(chunk)
        await call.done_writing()
        await reading
        return time.perf_counter() - began_s


@dataclass
class Ours:
    """Tasks that deliver one thing; each returns its seconds."""

    executor: BusyExecutor
    assign: Assign
    content: bytes

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256(self.content).hexdigest()

    async def upload(self) -> float:
        key = await self._held()
        path = self.executor.directory(key) / ARCHIVE
        await asyncio.to_thread(path.write_bytes, self.content)
        return await self._delivered(
            key, output_sha256=self._digest, output_bytes=len(self.content), output_files=1
        )

    async def log(self) -> float:
        key = await self._held()
        for at in range(0, len(self.content), MIB):
            self.executor.log(key).write(self.content[at : at + MIB])
        return await self._delivered(key)

    async def _held(self) -> TaskKey:
        key = TaskKey(f"t{next(NUMBERS)}", 1)
        await self.assign(key.task_id)
        while key not in self.executor.held:
            await asyncio.sleep(POLL_S)
        return key

    async def _delivered(self, key: TaskKey, **more: Any) -> float:
        for phase in (TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING):
            self.executor.move(key, phase)
        began_s = time.perf_counter()
        self.executor.finish(key, **more)
        while key in self.executor.held:
            await asyncio.sleep(POLL_S)
        return time.perf_counter() - began_s


NUMBERS = itertools.count()


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass


async def each_call(stub: Any, calls: int) -> float:
    took = []
    for _ in range(calls):
        request = pb.TaskAssignmentRequest(
            task_id=f"c{next(NUMBERS)}", attempt=1, command=["echo", "hello"]
        )
        began_s = time.perf_counter()
        answer = await stub.AssignTask(request, timeout=LONGEST_S)
        took.append(time.perf_counter() - began_s)
        assert answer.accepted, answer
    return median(took)


async def compared(rounds: int, ours: Step, bare: Step) -> tuple[float, float]:
    """Medians, taken in turns."""
    pairs = [(await ours(), await bare()) for _ in range(rounds)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


async def assign_ratio(
    rounds: int, calls: int, executor: BusyExecutor, worker: Any, bare: Any
) -> float:
    async def assignments() -> float:
        took_s = await each_call(worker, calls)
        while len(executor.held) < calls:
            await asyncio.sleep(POLL_S)
        for key in list(executor.held):
            executor.run(key)
        while executor.held:
            await asyncio.sleep(POLL_S)
        return took_s

    ours_s, bare_s = await compared(4 * rounds, assignments, lambda: each_call(bare, calls))
    ratio = ours_s / bare_s
    print(f"AssignTask {ours_s * 1e3:.2f} ms, bare {bare_s * 1e3:.2f} ms: ", end="")
    print(f"{ratio:.2f} times (at most {MOST_ASSIGN:g})", flush=True)
    return ratio


async def stream_ratios(what: str, rounds: int, ours: Ours, bare: Bare) -> list[float]:
    ratios = []
    for name, steps in {"output": (ours.upload, bare.upload), "log": (ours.log, bare.log)}.items():
        ours_s, bare_s = await compared(rounds, *steps)
        ratios.append(bare_s / ours_s)
        megabytes = len(ours.content) / 1e6
        speeds = f"{megabytes / ours_s:.0f} MB/s, bare {megabytes / bare_s:.0f} MB/s"
        print(f"{name} {what}{speeds}: {ratios[-1]:.2f} (at least {LEAST_STREAM:g})", flush=True)
    return ratios


async def run(rounds: int, megabytes: int, calls: int, data: Path) -> bool:
    content = bytes(range(256)) * (megabytes * 10**6 // 256)
    async with bare_server() as (stub, url):
        bare = Bare(stub, content)
        async with link_to(url) as (executor, worker):

            async def assign(task_id: str) -> object:
                request = pb.TaskAssignmentRequest(task_id=task_id, attempt=1)
                return await worker.AssignTask(request, timeout=LONGEST_S)

            ratio = await assign_ratio(rounds, calls, executor, worker, stub)
            ratios = await stream_ratios("", rounds, Ours(executor, assign, content), bare)
        async with line(data, NOTHING, Where(direct=True)) as made:

            async def submit(task_id: str) -> object:
                body = {"task_id": task_id, "command": ["x"]}
                return await asyncio.to_thread(made.api.post, "/api/v1/tasks", body)

            ours = Ours(made.executor, submit, content)
            await stream_ratios("stored by the reference master ", rounds, ours, bare)
    return ratio <= MOST_ASSIGN and min(ratios) >= LEAST_STREAM


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 5), ("mb", 200), ("calls", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hml-", dir="/tmp") as folder:
        data = Path(folder) / "master"
        well = asyncio.run(run(asked.rounds, asked.mb, asked.calls, data))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
