"""Throws whatever the wire can carry at a worker: AssignTask, CancelTask and the channel.

python -m tests.bench.fuzz [MESSAGES, default 10000] [SEED]: the link's own server edge and channel,
on real sockets, beside an executor without Docker. Each message gets an answer of the contract,
and afterwards nothing is left of them: no descriptor, no task of the loop, no directory, no
memory. A few hundred are a test (tests/master_link/test_fuzz.py).
"""

import asyncio
import gc
import os
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from tests.fakes.any_message import ASSIGNMENTS, CANCELS, broken_bytes
from tests.master_link.rig import Rig, rig

WAYS = ("AssignTask", "CancelTask", "channel", "channel.assign", "channel.cancel")
UNREADABLE = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)  # what gRPC itself says of it
PART = 1000
BATCH, ROOM = 50, 50  # messages at once; attempts that may be held before the next
ANSWER_S = 30.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
METHOD = "/hivemind.v1.TaskService/{}"
WORDS = {
    field.name
    for name, kind in pb.DESCRIPTOR.message_types_by_name.items()
    if name in ("TaskAssignmentRequest", "Resources", "TaskInput")
    for field in kind.fields
}
Message = tuple[str, Any]
MESSAGES = st.one_of(
    st.tuples(st.sampled_from(["AssignTask", "channel.assign"]), ASSIGNMENTS),
    st.tuples(st.sampled_from(["CancelTask", "channel.cancel"]), CANCELS),
    st.tuples(st.sampled_from(["AssignTask", "CancelTask", "channel"]), broken_bytes()),
    st.tuples(st.just("channel"), st.binary(max_size=64)),
)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@dataclass
class Fuzz:
    """A worker under fire."""

    rig: Rig
    port: grpc.aio.Channel
    counts: Counter[str] = field(default_factory=Counter)

    async def send(self, batch: list[Message]) -> None:
        """All of a batch at once: of the same task, too."""
        async with asyncio.timeout(ANSWER_S):
            async with asyncio.TaskGroup() as group:
                for way, message in batch:
                    group.create_task(self._send(way, message))
            await self.finished(ROOM)
        memory = self.rig.master.memory  # what the test's master remembers is no leak
        memory.heartbeats.clear()
        memory.statuses.clear()

    async def finished(self, most: int = 0) -> None:
        """What was accepted runs, ends and is delivered, so that there is room again."""
        assert self.rig.link is not None
        attempts = self.rig.link.desk.attempts
        await self.rig.until(lambda: len(attempts) <= most, ANSWER_S)

    async def _send(self, way: str, message: Any) -> None:
        self.counts[way] += 1
        match way:
            case "AssignTask" | "CancelTask":
                await self._call(way, message)
            case "channel":
                await self.rig.master.say(message)  # an answer may come, or none
            case _:
                await self._by_channel(way, message)

    async def _call(self, method: str, message: Any) -> None:
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        kind = pb.TaskAssignmentRequest if method == "AssignTask" else pb.TaskCancelRequest
        answers = pb.TaskAssignmentResponse if method == "AssignTask" else pb.TaskCancelResponse
        call: Any = self.port.unary_unary(METHOD.format(method), None, answers.FromString)
        try:
            request = kind.FromString(raw)
        except DecodeError:
            request = None
        try:
            self.check(request, await call(raw, timeout=ANSWER_S))
        except grpc.aio.AioRpcError as err:
            if request is not None or err.code() not in UNREADABLE:
                raise AssertionError(f"{err.code()} for {request}") from err
            self.counts["no message"] += 1

    async def _by_channel(self, way: str, request: Any) -> None:
        """Answers name task and attempt: of two that are the same only one is waited for."""
        key = (way.removeprefix("channel."), TaskKey(request.task_id, request.attempt))
        wanted = "assign" if way == "channel.assign" else "cancel"
        if key in self.rig.master.answers:
            return
        message = pb.MasterMessage(**{wanted: request})
        self.check(request, await self.rig.master._ask(wanted, request, message, ANSWER_S))

    def check(self, request: Any, answer: Any) -> None:
        """An answer of the contract."""
        assert request is not None, f"{answer} for no message"
        assert (answer.task_id, answer.attempt) == (request.task_id, request.attempt)
        if isinstance(answer, pb.TaskCancelResponse):
            self.counts["cancelled" if answer.known else "unknown"] += 1
            assert answer.known == (answer.state != pb.TASK_STATE_UNSPECIFIED), answer
            return
        name = pb.Refusal.Name(answer.refusal)
        self.counts["accepted" if answer.accepted else name] += 1
        assert answer.accepted == (answer.refusal == pb.REFUSAL_UNSPECIFIED), answer
        assert bool(answer.reason) != answer.accepted, answer
        assert answer.HasField("retry_after") == (answer.refusal == pb.REFUSAL_BUSY), answer
        if answer.refusal == pb.REFUSAL_INVALID:
            assert any(word in answer.reason for word in WORDS), f"names no field: {answer}"

    def leftovers(self) -> dict[str, int]:
        """What must be the same after as before."""
        assert self.rig.link is not None
        desk = self.rig.link.desk
        return {
            "attempts": len(desk.attempts),
            "bells": len(desk.news._bells),
            "locks": len(desk._locks),
            "tasks of the loop": len(asyncio.all_tasks()),
            "descriptors": descriptors(),
            "directories": len(list((self.rig.home / "tasks").iterdir())),
        }


async def _begin(stack: AsyncExitStack) -> Fuzz:
    made = await stack.enter_async_context(rig(runs=True, TASK_LISTEN="127.0.0.1:0"))
    await made.until(lambda: made.master.memory.registrations[-1].task_endpoint)
    address = made.master.memory.registrations[-1].task_endpoint
    port = await stack.enter_async_context(grpc.aio.insecure_channel(address))
    fuzz = Fuzz(made, port)
    for number in range(3):  # what is made once is made before the count
        await fuzz.send([(way, pb.TaskAssignmentRequest(task_id=f"w{number}", attempt=1))
                         for way in ("AssignTask", "channel.assign")])  # fmt: skip
    return fuzz


def run(messages: int, number: int) -> tuple[Counter[str], list[int]]:
    """What came, and the process's bytes after each part; AssertionError: what is wrong."""
    resident: list[int] = []
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        fuzz = runner.run(_begin(stack))
        try:
            before = runner.run(_settled(fuzz))
            for part in range(-(-messages // PART)):
                _throw(runner, fuzz, min(PART, messages), number + part)
                resident.append(resident_bytes())
            after = runner.run(_settled(fuzz, before))
            assert _is_no_more(after, before), f"left over: {after}, before {before}"
            runner.run(_kept_as_delivered(fuzz))
        finally:
            runner.run(stack.aclose())
    return fuzz.counts, resident


def _throw(runner: asyncio.Runner, fuzz: Fuzz, messages: int, number: int) -> None:
    """One part: Hypothesis remembers all that it has made, so its memory ends with it."""

    @seed(number)
    @settings(
        max_examples=-(-messages // BATCH),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(MESSAGES, min_size=BATCH, max_size=BATCH))
    def batches(batch: list[Message]) -> None:
        runner.run(fuzz.send(batch))

    batches()


def _is_no_more(after: dict[str, int], before: dict[str, int]) -> bool:
    return all(after[name] <= before[name] for name in before)


async def _settled(fuzz: Fuzz, before: dict[str, int] | None = None) -> dict[str, int]:
    """Once nothing moves any more, or all is as it was `before`."""
    await fuzz.finished()
    last: dict[str, int] = {}
    for _ in range(100):
        found = fuzz.leftovers()
        if found == last if before is None else _is_no_more(found, before):
            break
        last = found
        await asyncio.sleep(0.1)
    return fuzz.leftovers()


async def _kept_as_delivered(fuzz: Fuzz) -> None:
    """Each that was accepted was delivered, and nothing else was kept."""
    delivered = {key.directory for key in fuzz.rig.master.memory.results}
    kept = {path.name for path in fuzz.rig.home.joinpath("kept").iterdir()}
    assert kept <= delivered, kept - delivered


def main(messages: int = 10_000, number: int = 0) -> None:
    number = number or random.randrange(2**32)
    begun_s = time.monotonic()
    counts, resident = run(messages, number)
    took_s = time.monotonic() - begun_s
    print(f"{sum(counts[way] for way in WAYS)} messages in {took_s:.0f} s, seed {number}")
    for name, count in sorted(counts.items()):
        print(f"  {name:<20} {count}")
    print("MiB after each part:", " ".join(f"{size / 2**20:.1f}" for size in resident))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
