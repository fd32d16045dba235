"""One attempt's traffic with the master: statuses, inputs, log, output, result.

A delivery begins from what the master says that it has, and after any failure again from there.
From the executor's final word to the result nothing sleeps and nothing is polled.
"""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

from procs.master_link import core, wire
from procs.master_link.chunks import log_chunk, output_chunk
from procs.master_link.core import AllTold, Attempt, NotYet, Status
from procs.master_link.desk import Desk
from procs.master_link.disk import InputFile
from procs.master_link.master_edge import (
    CHUNK_BYTES,
    DeniedError,
    LogStream,
    Master,
    MasterAwayError,
    MasterError,
    NotThereError,
    Upload,
)
from procs.master_link.news import Bell
from procs.master_link.turns import Turns
from shared.messages import StopReason, TaskPhase
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import ARCHIVE, LOG, RESULT, InputSpec, RecordError, Report, read_report
from shared.tasklog import HEADER, MOST_DATA_BYTES, LogReader, LogRecord

DENIED_RETRY_S = 60.0
STEADY_S = 30.0  # a step that went on so long begins to count failures anew
GROWTH_EVERY_S = 0.2  # how late a line of a running task's log may be noticed
LOG_READ_BYTES = CHUNK_BYTES + CHUNK_BYTES // MOST_DATA_BYTES * HEADER.size  # whole records
MORE_THAN_ANNOUNCED = "the master sends more than the {} bytes that it announced"

log = logging.getLogger("master_link")


class LogWatch:
    """Looks at running tasks' logs, and rings when one has grown; rests when there is none."""

    def __init__(self) -> None:
        self._watched: dict[Path, Bell] = {}
        self._some = asyncio.Event()

    @contextlib.contextmanager
    def watching(self, path: Path, bell: Bell) -> Iterator[None]:
        self._watched[path] = bell
        self._some.set()
        try:
            yield
        finally:
            self._watched.pop(path, None)

    async def run(self) -> None:
        sizes: dict[Path, int] = {}
        while True:
            if not self._watched:
                self._some.clear()
                sizes.clear()
                await self._some.wait()
            for path, bell in self._watched.items():
                size = _size(path)
                if sizes.get(path) != size:
                    sizes[path] = size
                    bell.ring()
            await asyncio.sleep(GROWTH_EVERY_S)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


class Courier:
    """Runs until the master has acknowledged the attempt's result."""

    def __init__(
        self,
        attempt: Attempt,
        desk: Desk,
        master: Master,
        watch: LogWatch,
        turns: Turns,
        on_away: Callable[[], None],
    ) -> None:
        self._attempt = attempt
        self._desk = desk
        self._master = master
        self._watch = watch
        self._turns = turns
        self._on_away = on_away
        self._key = attempt.key
        self._bell = desk.news.bell(attempt.key)
        self._told = asyncio.Event()
        self._again = attempt.redeliver
        self._directory = desk.disk.where(attempt.key)

    @property
    def _phase(self) -> TaskPhase:
        return self._desk.news.phase(self._key)

    @property
    def _is_final(self) -> bool:
        return self._again or self._phase.is_final

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._again or (self._directory / RESULT).exists():
                self._told.set()
            else:
                group.create_task(self._tell_statuses())
                if any(not item.inline for item in self._attempt.inputs):
                    group.create_task(self._fetch_inputs())
            await self._until_done(self._deliver, "its delivery")

    async def _until_done(self, step: Callable[[], Awaitable[None]], what: str) -> None:
        failures = 0
        while True:
            began_s = time.monotonic()
            try:
                return await step()
            except (MasterError, OSError, RecordError) as err:
                log.warning("%s: %s failed: %s", self._key.directory, what, err)
                if isinstance(err, MasterAwayError):
                    self._on_away()
                denied = isinstance(err, DeniedError)
            failures = 0 if time.monotonic() - began_s > STEADY_S else failures + 1
            delay_s = core.retry_s(failures, random.random())
            await asyncio.sleep(DENIED_RETRY_S if denied else delay_s)

    # -------------------------------------------------------------- statuses

    async def _tell_statuses(self) -> None:
        await self._until_done(self._tell_each, "a status")

    async def _tell_each(self) -> None:
        detail, sent_s = "", 0.0
        while True:
            held = self._desk.news.held.get(self._key)
            since_s = time.monotonic() - sent_s
            match core.next_status(held, self._attempt.phase_sent, detail, since_s):
                case AllTold():
                    return self._told.set()
                case NotYet(wait_s):
                    await self._bell.wait(wait_s)
                case Status() as status:
                    detail, sent_s = status.detail, time.monotonic()
                    await self._tell(status)

    async def _tell(self, status: Status) -> None:
        await self._desk.records.saved(self._attempt)  # a life that begins after this one must
        # not tell an earlier phase after a later one
        node_id, at = self._desk.standing.node_id, status.at_unix_s or time.time()
        wanted = await self._master.status(
            wire.status(node_id, self._key, status.phase, status.detail, at)
        )
        if self._attempt.phase_sent is not status.phase:
            self._attempt.phase_sent = status.phase
            self._desk.records.save_later(self._attempt)
        if not wanted:
            await self._desk.stop(
                self._attempt, StopReason.CANCELLED, "the master does not want it any more"
            )

    # -------------------------------------------------------------- inputs

    async def _fetch_inputs(self) -> None:
        while self._phase is TaskPhase.ACCEPTED:
            await self._bell.wait()
        for index, item in enumerate(self._attempt.inputs):
            file = InputFile(self._directory, index, item.size_bytes)
            if not item.inline and not file.is_settled:
                await self._until_done(partial(self._fetch, item, file), f"input {item.path!r}")

    async def _fetch(self, item: InputSpec, file: InputFile) -> None:
        """Go on from what is there; only while the task is being prepared."""
        offset = await asyncio.to_thread(file.stored_bytes)
        request = pb.TaskInputRequest(
            task_id=self._key.task_id, attempt=self._key.attempt, path=item.path, offset=offset
        )
        try:
            async with contextlib.aclosing(self._master.fetch(request)) as chunks:
                while offset < item.size_bytes and self._phase is TaskPhase.PREPARING:
                    chunk = await anext(chunks, None)
                    if chunk is None:
                        raise MasterError(f"it ended after {offset} of {item.size_bytes} bytes")
                    if chunk.offset != offset:
                        raise MasterError(f"it goes on at {chunk.offset} instead of {offset}")
                    if not await asyncio.to_thread(file.append, offset, chunk.data):
                        reason = MORE_THAN_ANNOUNCED.format(item.size_bytes)
                        return await asyncio.to_thread(file.give_up, reason)
                    offset += len(chunk.data)
        except NotThereError as err:
            return await asyncio.to_thread(file.give_up, f"the master has it not: {err}")
        if offset == item.size_bytes:
            await asyncio.to_thread(file.finish)
        return None

    # -------------------------------------------------------------- delivery

    async def _deliver(self) -> None:
        self._directory = self._desk.disk.where(self._key)
        log_records = await self._send_log()
        await self._told.wait()  # so a stored result says that no status is owed any more
        report = read_report(self._directory)
        storing = asyncio.create_task(asyncio.to_thread(self._result, report, log_records))
        try:
            await self._send_output(report)
        finally:
            message = await storing
        if not await self._master.submit(message):
            raise MasterError("the master has not all of it yet")
        await self._desk.delivered(self._attempt, report.phase, message)

    def _result(self, report: Report, log_records: int) -> bytes:
        """The same bytes each time; they are stored before they are first sent."""
        stored = self._desk.disk.stored_result(self._key)
        if stored is not None:
            return stored
        message = wire.result(report, self._desk.standing.node_id, log_records)
        raw = message.SerializeToString(deterministic=True)
        self._desk.disk.store_result(self._key, raw)
        return raw

    async def _send_log(self) -> int:
        """From the first byte until the end is acknowledged; how many records the log has."""
        path = self._directory / LOG
        while not self._is_final and self._phase in (TaskPhase.ACCEPTED, TaskPhase.PREPARING):
            await self._bell.wait()
        opening = log_chunk(self._key, ())
        async with self._master.log_stream(opening, self._bell.ring) as stream:
            with (
                contextlib.closing(LogReader(path, await stream.first_ack())) as reader,
                self._watch.watching(path, self._bell),
            ):
                await self._send_growth(stream, reader)
                acknowledged = await stream.ended()
        if acknowledged < reader.next_sequence:
            raise MasterError(f"only {acknowledged} of {reader.next_sequence} log records arrived")
        return acknowledged

    async def _send_growth(self, stream: LogStream, reader: LogReader) -> None:
        """Send what the log has and gets, and its end, with the last of its records."""
        is_over = False
        while not is_over:
            stream.check()
            was_final = self._is_final  # looked at before the file: what comes later is not its end
            async with self._turns.turn():
                records = reader.read(LOG_READ_BYTES)
                is_over = was_final and _is_all(records)
                if records or is_over:
                    await stream.send(log_chunk(self._key, records, end=is_over))
            if not records and not self._is_final:
                await self._bell.wait()

    async def _send_output(self, report: Report) -> None:
        if not report.output_sha256:
            return
        sha256 = bytes.fromhex(report.output_sha256)
        query = pb.TaskOutputQuery(
            task_id=self._key.task_id, attempt=self._key.attempt, sha256=sha256
        )
        receipt = await self._master.query_output(query)
        if not receipt.complete:
            async with self._master.upload() as upload:
                await self._send_chunks(upload, sha256, report.output_bytes, receipt.stored_bytes)
                receipt = await upload.receipt()
        if not receipt.complete:
            raise MasterError(f"it has {receipt.stored_bytes} of {report.output_bytes} bytes")

    async def _send_chunks(
        self, upload: Upload, sha256: bytes, total_bytes: int, offset: int
    ) -> None:
        """At least one, if need be empty: a master that fell before it had checked all of it does
        so then."""
        path, is_over = self._directory / ARCHIVE, False
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with path.open("rb") as file:
            while not is_over:
                async with self._turns.turn():
                    data = buffer[: await _read_at(file.fileno(), buffer, offset)]
                    if not data and offset < total_bytes:
                        raise OSError(f"{path} is shorter than its report says")
                    await upload.send(
                        output_chunk(self._key, sha256, total_bytes, offset, data)
                    )
                offset += len(data)
                is_over = offset >= total_bytes


def _is_all(records: list[LogRecord]) -> bool:
    """A read that stopped so early stopped because there was no more."""
    size_bytes = sum(len(record.data) + HEADER.size for record in records)
    return size_bytes + MOST_DATA_BYTES + HEADER.size <= LOG_READ_BYTES


async def _read_at(file: int, buffer: memoryview, offset: int) -> int:
    """The next chunk; from the page cache at once, from a disk in a thread."""
    with contextlib.suppress(OSError):  # not there, or not known to this file system
        if os.preadv(file, [buffer], offset, os.RWF_NOWAIT) == len(buffer):
            return len(buffer)
    return await asyncio.to_thread(os.preadv, file, [buffer], offset)
