"""TaskService on the master's side: what nodes say of their attempts, and what they fetch.

Nothing is acknowledged that is not on disk. What is said of an attempt that nobody waits for is
acknowledged and dropped.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, NoReturn

import grpc
import sqlalchemy as sa

from procs.master import log_records, task_records
from procs.master.bells import Bells
from procs.master.database import Database
from procs.master.dispatcher import Dispatcher
from procs.master.files import Files, Output, OutputUpload
from procs.master.gate import Caller, Gate, deny
from procs.master.inflow import Inflow, Lines, in_any_case
from procs.master.task_records import Key, NotYours
from shared.pb import hivemind_pb2 as pb
from shared.pb import hivemind_pb2_grpc as pb_grpc

log = logging.getLogger("master")

DEFAULT_OUTPUT_LIMIT_BYTES = 2**30
ARCHIVE_SLACK_BYTES = 64 * 2**20  # what an archive adds to files that do not compress

DIGEST_BYTES = 32
NO_DIGEST = "none"

Context = grpc.aio.ServicerContext[Any, Any]


class TaskServer(pb_grpc.TaskServiceServicer):
    """What nodes call. AssignTask and CancelTask are the worker's to serve."""

    def __init__(
        self, database: Database, files: Files, dispatcher: Dispatcher, bells: Bells, gate: Gate
    ) -> None:
        self._database, self._files = database, files
        self._dispatcher, self._bells, self._gate = dispatcher, bells, gate
        self._lines = Lines()

    async def AssignTask(
        self, request: pb.TaskAssignmentRequest, context: Context
    ) -> pb.TaskAssignmentResponse:
        await _abort(context, grpc.StatusCode.UNIMPLEMENTED, "a worker serves this call")

    async def CancelTask(
        self, request: pb.TaskCancelRequest, context: Context
    ) -> pb.TaskCancelResponse:
        await _abort(context, grpc.StatusCode.UNIMPLEMENTED, "a worker serves this call")

    async def ReportTaskStatus(
        self, request: pb.TaskStatusRequest, context: Context
    ) -> pb.TaskStatusResponse:
        await self._gate.check(context, request.node_id)
        try:
            wanted = await self._database.run(task_records.status, request)
        except NotYours as err:
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, str(err))
        self._bells.ring(request.task_id)
        return pb.TaskStatusResponse(wanted=wanted)

    async def StreamTaskLogs(
        self, chunks: AsyncIterator[pb.TaskLogChunk], context: Context
    ) -> None:
        """Acknowledges what is stored; many tasks on one stream."""
        await in_any_case(self._take_logs(chunks, context))

    async def _take_logs(
        self, chunks: AsyncIterator[pb.TaskLogChunk], context: Context
    ) -> None:
        caller = await self._gate.caller(context)
        brought: set[Key] = set()
        inflow = Inflow(chunks)
        with ExitStack() as lines:
            try:
                while batch := await inflow.batch():
                    for key in {Key(c.task_id, c.attempt) for c in batch} - brought:
                        await self._check_holder(context, caller, key)
                        brought.add(key)
                        await self._lines.clear(("log", key))
                        lines.enter_context(self._lines.bringing(("log", key)))
                    await self._append(batch, context, caller)
            finally:
                await inflow.close()

    async def _append(
        self, chunks: list[pb.TaskLogChunk], context: Context, caller: Caller | None
    ) -> None:
        """Stored together: a commit for each would cost more than the storing. An attempt may have
        gone to another node since its first chunk."""
        node_id = None if caller is None else caller.node_id
        if node_id is not None:
            await self._gate.check_revoked(context, node_id)
        try:
            stored = await self._database.run(log_records.append_all, chunks, node_id)
        except NotYours as err:
            await deny(context, str(err))
        for key, following in stored.items():
            self._bells.ring(key.task_id)
            ack = pb.TaskLogAck(task_id=key.task_id, attempt=key.attempt, next_sequence=following)
            await context.write(ack)

    async def FetchTaskInput(
        self, request: pb.TaskInputRequest, context: Context
    ) -> AsyncIterator[pb.TaskInputChunk]:
        key = Key(request.task_id, request.attempt)
        caller = await self._gate.caller(context)
        await self._check_holder(context, caller, key)
        sha256 = await self._database.run(_input_sha256, key, request.path)
        offset = request.offset
        while True:
            data = await asyncio.to_thread(self._files.input_bytes, sha256, offset)
            if data is None:
                text = f"{key} has no input {request.path!r} here"
                await _abort(context, grpc.StatusCode.NOT_FOUND, text)
            if not data:
                return
            if caller is not None:
                await self._gate.check_revoked(context, caller.node_id)
            yield pb.TaskInputChunk(offset=offset, data=data)
            offset += len(data)

    async def QueryTaskOutput(
        self, request: pb.TaskOutputQuery, context: Context
    ) -> pb.TaskOutputReceipt:
        key = Key(request.task_id, request.attempt)
        await self._check_holder(context, await self._gate.caller(context), key)
        if await self._database.run(task_records.wanted, key) is None:
            return pb.TaskOutputReceipt(complete=True)
        await _check_digest(request.sha256, context)
        await self._lines.clear(("output", key))
        return await asyncio.to_thread(_receipt, self._files.output(key, request.sha256))

    async def UploadTaskOutput(
        self, chunks: AsyncIterator[pb.TaskOutputChunk], context: Context
    ) -> pb.TaskOutputReceipt:
        """Stores what follows what is there. The receipt says where to go on, or all is well."""
        return await in_any_case(self._upload(chunks, context))

    async def _upload(
        self, chunks: AsyncIterator[pb.TaskOutputChunk], context: Context
    ) -> pb.TaskOutputReceipt:
        first = await anext(aiter(chunks), None)
        if first is None:
            return pb.TaskOutputReceipt()
        key = Key(first.task_id, first.attempt)
        await self._check_holder(context, await self._gate.caller(context), key)
        spec = await self._database.run(_spec_of_wanted, key)
        if spec is None:
            return pb.TaskOutputReceipt(complete=True)
        await _check_digest(first.sha256, context)
        if first.total_bytes > _most_output_bytes(spec):
            text = f"an output of {first.total_bytes} bytes is over the task's limit"
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        output = self._files.output(key, first.sha256)
        await self._lines.clear(("output", key))
        with self._lines.bringing(("output", key)):
            if not output.complete():
                await self._store(output, first, chunks)
            return await asyncio.to_thread(_receipt, output)

    async def _store(
        self,
        output: Output,
        first: pb.TaskOutputChunk,
        chunks: AsyncIterator[pb.TaskOutputChunk],
    ) -> None:
        """What does not follow, or is of another archive, ends it."""
        total_bytes, upload = first.total_bytes, await asyncio.to_thread(output.open_upload)
        inflow, batch = Inflow(chunks), [first]
        try:
            while await asyncio.to_thread(_write, upload, batch, total_bytes):
                if upload.stored_bytes == total_bytes:
                    await asyncio.to_thread(upload.finish)
                    break
                if not (batch := await inflow.batch()):
                    break
        finally:
            await inflow.close()
            upload.close()

    async def SubmitTaskResult(
        self, request: pb.TaskResultRequest, context: Context
    ) -> pb.TaskResultResponse:
        """Acknowledged once it is stored, with its whole log and output."""
        await self._gate.check(context, request.node_id)
        key = Key(request.task_id, request.attempt)
        output = request.output.sha256
        if output:
            await _check_digest(output, context)
        if output and not await asyncio.to_thread(self._files.output(key, output).complete):
            wanted = await self._database.run(task_records.wanted, key)
            return pb.TaskResultResponse(acknowledged=wanted is None)
        try:  # shielded from the caller's deadline: what is stored must also be made known
            stored = await asyncio.shield(self._dispatcher.in_background(self._keep(request)))
        except NotYours as err:
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, str(err))
        return pb.TaskResultResponse(acknowledged=stored)

    async def _check_holder(self, context: Context, caller: Caller | None, key: Key) -> None:
        """For messages that name no node: it must hold the attempt."""
        if caller is None:
            return
        await self._gate.check_revoked(context, caller.node_id)
        if not await self._database.run(task_records.may_speak_of, key, caller.node_id):
            await deny(context, f"{caller.node_id} does not hold {key}")

    async def _keep(self, request: pb.TaskResultRequest) -> bool:
        stored = await self._database.run(_finish, request, time.time())
        if stored:
            log.info("%s.%d has ended", request.task_id, request.attempt)
            await self._dispatcher.ended(request.task_id)
        return stored


def _finish(connection: sa.Connection, request: pb.TaskResultRequest, now_unix_s: float) -> bool:
    """Store the result; False: a part of its log is missing, or it is no final state."""
    row = task_records.wanted(connection, Key(request.task_id, request.attempt))
    if row is None:
        return True
    task_records.check_holder(row, request.node_id)
    if row["log_next"] < request.log_records or request.state not in task_records.FINAL:
        return False
    task_records.finish(connection, request, now_unix_s)
    return True


def _input_sha256(connection: sa.Connection, key: Key, path: str) -> str:
    """The digest of a task's input; one that is found nowhere when it has none such."""
    spec = _spec_of_wanted(connection, key)
    if spec is None:
        return NO_DIGEST
    return next((i.sha256.hex() for i in spec.inputs if i.path == path), NO_DIGEST)


def _spec_of_wanted(connection: sa.Connection, key: Key) -> pb.TaskAssignmentRequest | None:
    if task_records.wanted(connection, key) is None:
        return None
    return task_records.spec(connection, key.task_id)


def _most_output_bytes(spec: pb.TaskAssignmentRequest) -> int:
    return (spec.output_limit_bytes or DEFAULT_OUTPUT_LIMIT_BYTES) + ARCHIVE_SLACK_BYTES


def _write(upload: OutputUpload, chunks: list[pb.TaskOutputChunk], total_bytes: int) -> bool:
    """Many at once: a thread for each would cost more than the writing."""
    return all(upload.write(chunk.offset, chunk.data, total_bytes) for chunk in chunks)


def _receipt(output: Output) -> pb.TaskOutputReceipt:
    return pb.TaskOutputReceipt(stored_bytes=output.stored_bytes(), complete=output.complete())


async def _check_digest(sha256: bytes, context: Context) -> None:
    if len(sha256) != DIGEST_BYTES:
        text = f"sha256 has {len(sha256)} bytes, not {DIGEST_BYTES}"
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)


async def _abort(context: Context, code: grpc.StatusCode, details: str) -> NoReturn:
    await context.abort(code, details)
    raise AssertionError("abort always raises")
