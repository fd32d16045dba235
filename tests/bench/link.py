"""What the link costs beside bare gRPC, as ratios from one run, each taken in turns with its bare
counterpart: two processes on each side, the same messages.

    python -m tests.bench.link [--rounds 5] [--mb 200] [--calls 100]

AssignTask, durable on disk, at most 3 times a bare unary call; an output and a log, from the
executor's last word until the master has recorded the task's end, digest checked and synced, at
least 0.8 of what a bare stream of the same chunks carries.
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
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio
from msgspec import structs

from shared.messages import TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc
from shared.taskdir import ARCHIVE, TaskKey
from shared.tasklog import HEADER, MOST_DATA_BYTES
from tests.fakes.executor import ROOMY
from tests.fakes.line import MIB, NOTHING, Line, Where, line
from tests.system.whole import free_port

MOST_ASSIGN, LEAST_STREAM = 3.0, 0.8
CHUNK_BYTES = 256 * 1024
RECORD_BYTES = MOST_DATA_BYTES - HEADER.size  # as the keeper writes a loud task's: 4 to a chunk
LONGEST_S = 120.0

Step = Callable[[], Awaitable[float]]


@asynccontextmanager
async def bare_server() -> AsyncIterator[pb_grpc.TaskServiceStub]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.bare_server", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield pb_grpc.TaskServiceStub(channel)  # type: ignore[no-untyped-call]
    finally:
        process.kill()
        await process.communicate()


class Measured:
    """Calls and streams of both kinds; each returns its seconds."""

    def __init__(self, made: Line, bare: Any, worker: Any, megabytes: int, calls: int) -> None:
        self._line, self._bare, self._worker = made, bare, worker
        self._bytes, self._calls = megabytes * 10**6, calls
        self._numbers = itertools.count()
        self._content = bytes(range(256)) * (self._bytes // 256)
        self._digest = hashlib.sha256(self._content).hexdigest()
        made.executor.capacity = structs.replace(ROOMY, max_held=10**6)

    # -------------------------------------------------------------- AssignTask

    async def bare_calls(self) -> float:
        return await self._each_call(self._bare.AssignTask)

    async def assignments(self) -> float:
        """The master does not know of them, and lets each go when it has ended."""
        took_s = await self._each_call(self._worker.AssignTask)
        executor = self._line.executor
        while len(executor.held) < self._calls:
            await asyncio.sleep(0.05)
        for key in list(executor.held):
            executor.run(key)
        while executor.held:
            await asyncio.sleep(0.05)
        return took_s

    async def _each_call(self, call: Callable[..., Awaitable[pb.TaskAssignmentResponse]]) -> float:
        took = []
        for _ in range(self._calls):
            request = pb.TaskAssignmentRequest(
                task_id=f"call{next(self._numbers)}", attempt=1, command=["echo", "hello"]
            )
            began_s = time.perf_counter()
            answer = await call(request, timeout=LONGEST_S)
            took.append(time.perf_counter() - began_s)
            assert answer.accepted, answer
        return median(took)

    # -------------------------------------------------------------- outputs

    async def bare_upload(self) -> float:
        chunk = pb.TaskOutputChunk(
            task_id="bare", attempt=1, sha256=bytes(32), data=self._content[:CHUNK_BYTES]
        )
        began_s = time.perf_counter()
        call = self._bare.UploadTaskOutput(timeout=LONGEST_S)
        for _ in range(self._bytes // CHUNK_BYTES):
            await call.write(chunk)
        await call.done_writing()
        await call
        return time.perf_counter() - began_s

    async def upload(self) -> float:
        key = await self._held()
        await asyncio.to_thread((self._directory(key) / ARCHIVE).write_bytes, self._content)
        return await self._ended(
            key, output_sha256=self._digest, output_bytes=len(self._content), output_files=1
        )

    # -------------------------------------------------------------- logs

    async def bare_log(self) -> float:
        data = self._content[:RECORD_BYTES]
        record = pb.LogRecord(sequence=1, data=data, stream="LOG_STREAM_STDOUT")
        records = [record] * 4
        chunk = pb.TaskLogChunk(task_id="bare", attempt=1, records=records)
        began_s = time.perf_counter()
        call = self._bare.StreamTaskLogs(timeout=LONGEST_S)
        reading = asyncio.create_task(_read_all(call))
        for _ in range(self._bytes // (4 * RECORD_BYTES)):
            await call.write(chunk)
        await call.done_writing()
        await reading
        return time.perf_counter() - began_s

    async def log(self) -> float:
        key = await self._held()
        for _ in range(self._bytes // MIB):
            self._line.executor.log(key).write(self._content[:MIB])
        return await self._ended(key)

    # -------------------------------------------------------------- a task

    def _directory(self, key: TaskKey) -> Path:
        return self._line.executor.directory(key)

    async def _held(self) -> TaskKey:
        """Given to the worker by its master, and in preparation."""
        await self._line.submit(1)
        key = self._line.keys[-1]
        while key not in self._line.executor.held:
            await asyncio.sleep(0.01)
        return key

    async def _ended(self, key: TaskKey, **more: Any) -> float:
        for phase in (TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.COLLECTING):
            self._line.executor.move(key, phase)
        began_s = time.perf_counter()
        self._line.executor.finish(key, **more)
        while await self._line.open_tasks():
            await asyncio.sleep(0.005)
        return time.perf_counter() - began_s


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass


async def compared(rounds: int, ours: Step, bare: Step) -> tuple[float, float]:
    """Medians, taken in turns."""
    pairs = []
    for _ in range(rounds):
        pairs.append((await ours(), await bare()))
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


async def run(rounds: int, megabytes: int, calls: int, data: Path) -> bool:
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with (
        bare_server() as bare,
        line(data, NOTHING, Where(direct=True), TASK_LISTEN=address) as made,
        grpc.aio.insecure_channel(address) as channel,
    ):
        worker = pb_grpc.TaskServiceStub(channel)  # type: ignore[no-untyped-call]
        it = Measured(made, bare, worker, megabytes, calls)
        ours_s, bare_s = await compared(rounds, it.assignments, it.bare_calls)
        assign = ours_s / bare_s
        print(f"AssignTask {ours_s * 1e3:.2f} ms, bare {bare_s * 1e3:.2f} ms: ", end="")
        print(f"{assign:.2f} times (at most {MOST_ASSIGN:g})", flush=True)
        ratios = []
        pairs = {"output": (it.upload, it.bare_upload), "log": (it.log, it.bare_log)}
        for name, steps in pairs.items():
            ours_s, bare_s = await compared(rounds, *steps)
            ratios.append(bare_s / ours_s)
            speeds = f"{megabytes / ours_s:.0f} MB/s, bare {megabytes / bare_s:.0f} MB/s"
            print(f"{name} {speeds}: ", end="")
            print(f"{ratios[-1]:.2f} (at least {LEAST_STREAM:g})", flush=True)
    return assign <= MOST_ASSIGN and min(ratios) >= LEAST_STREAM


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 5), ("mb", 200), ("calls", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hml-", dir="/tmp") as folder:
        data = Path(folder) / "master"
        well = asyncio.run(run(asked.rounds, asked.mb, asked.calls, data))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
