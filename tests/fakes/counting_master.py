"""The reference master, which also counts each byte of log and output that it is brought.

Run as `hivemind-master` is, with the counter's file before the command. The count is in mapped
memory: a SIGKILL takes nothing of it.
"""

import mmap
import os
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from procs.master import main as master
from procs.master.cli import app
from procs.master.task_server import TaskServer
from shared.pb import hivemind_pb2 as pb

COUNT = struct.Struct("<Q")


class Counter:
    """A number that outlives the process."""

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(file, COUNT.size)
        self._memory = mmap.mmap(file, COUNT.size)
        os.close(file)

    def add(self, count: int) -> None:
        COUNT.pack_into(self._memory, 0, self.read() + count)

    def read(self) -> int:
        return int(COUNT.unpack_from(self._memory, 0)[0])


def counting(counter: Counter) -> type[TaskServer]:
    async def outputs(
        chunks: AsyncIterator[pb.TaskOutputChunk],
    ) -> AsyncIterator[pb.TaskOutputChunk]:
        async for chunk in chunks:
            counter.add(len(chunk.data))
            yield chunk

    async def logs(chunks: AsyncIterator[pb.TaskLogChunk]) -> AsyncIterator[pb.TaskLogChunk]:
        async for chunk in chunks:
            counter.add(sum(len(record.data) for record in chunk.records))
            yield chunk

    class CountingServer(TaskServer):
        async def StreamTaskLogs(
            self, chunks: AsyncIterator[pb.TaskLogChunk], context: Any
        ) -> None:
            await super().StreamTaskLogs(logs(chunks), context)

        async def UploadTaskOutput(
            self, chunks: AsyncIterator[pb.TaskOutputChunk], context: Any
        ) -> pb.TaskOutputReceipt:
            return await super().UploadTaskOutput(outputs(chunks), context)

    return CountingServer


if __name__ == "__main__":
    setattr(master, "TaskServer", counting(Counter(Path(sys.argv.pop(1)))))  # noqa: B010
    app()
