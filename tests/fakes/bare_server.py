"""A master that keeps nothing of logs and outputs: what gRPC itself costs, and a link alone.

Run as a process; it prints its gRPC address and its URL.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from shared.pb import hivemind_pb2 as pb
from tests.fakes.link_master import FakeMaster


class BareMaster(FakeMaster):
    """Answers at once, and well, whatever it is sent."""

    async def AssignTask(
        self, request: pb.TaskAssignmentRequest, context: Any
    ) -> pb.TaskAssignmentResponse:
        return pb.TaskAssignmentResponse(accepted=True)

    async def StreamTaskLogs(
        self, requests: AsyncIterator[pb.TaskLogChunk], context: Any
    ) -> AsyncIterator[pb.TaskLogAck]:
        following = 0
        async for chunk in requests:
            if chunk.records:
                following = chunk.records[-1].sequence + 1
            yield pb.TaskLogAck(
                task_id=chunk.task_id, attempt=chunk.attempt, next_sequence=following
            )

    async def QueryTaskOutput(
        self, request: pb.TaskOutputQuery, context: Any
    ) -> pb.TaskOutputReceipt:
        return pb.TaskOutputReceipt()

    async def UploadTaskOutput(
        self, requests: AsyncIterator[pb.TaskOutputChunk], context: Any
    ) -> pb.TaskOutputReceipt:
        async for _ in requests:
            pass
        return pb.TaskOutputReceipt(complete=True)

    async def ReportTaskStatus(
        self, request: pb.TaskStatusRequest, context: Any
    ) -> pb.TaskStatusResponse:
        return pb.TaskStatusResponse(wanted=True)

    async def SubmitTaskResult(
        self, request: pb.TaskResultRequest, context: Any
    ) -> pb.TaskResultResponse:
        return pb.TaskResultResponse(acknowledged=True)


async def main() -> None:
    master = BareMaster()
    master.heartbeat_s = 10.0
    await master.start()
    print(f"127.0.0.1:{master.port} {master.url}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
