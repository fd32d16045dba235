"""A bare grpc.aio server that does nothing with what it is sent: what gRPC itself costs.

Run as a process; it prints its address.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

MESSAGE_BYTES = 16 * 2**20


class Bare(pb_grpc.TaskServiceServicer):
    async def AssignTask(
        self, request: pb.TaskAssignmentRequest, context: Any
    ) -> pb.TaskAssignmentResponse:
        return pb.TaskAssignmentResponse(accepted=True)

    async def StreamTaskLogs(
        self, chunks: AsyncIterator[pb.TaskLogChunk], context: Any
    ) -> AsyncIterator[pb.TaskLogAck]:
        async for _ in chunks:
            yield pb.TaskLogAck()

    async def UploadTaskOutput(
        self, chunks: AsyncIterator[pb.TaskOutputChunk], context: Any
    ) -> pb.TaskOutputReceipt:
        async for _ in chunks:
            pass
        return pb.TaskOutputReceipt()


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES)])
    add: Any = pb_grpc.add_TaskServiceServicer_to_server
    add(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
