"""Reads a task's log: records as the keeper writes them, while it writes them. Several may read.

A record is a header and its data: length, stream, version, magic, sequence, time. None crosses a
MiB of the file, and where a MiB has no room for a header and a byte, the next record begins with
the next MiB. What is in the file is the task's own word: nothing in it is trusted, a record that
is not as it must be is the end, for now (it may be half written, or be written over).
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEADER = struct.Struct("<IBBHQQ")
MIB = 2**20
MOST_DATA_BYTES = 64 * 1024
MAGIC, VERSION = 0x4D48, 1
STDOUT, STDERR, WORKER = 1, 2, 3  # as the contract's LogStream


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A part of what the command wrote, or (WORKER) a remark on it."""

    sequence: int
    stream: int
    unix_ns: int
    data: bytes


class LogReader:
    """Gives the records from `sequence` on. One file scanned by one thread."""

    def __init__(self, path: Path, sequence: int = 0) -> None:
        self._path = path
        self._file: int | None = None
        self._offset = 0
        self._at = 0  # the sequence of the record at _offset
        self.next_sequence = sequence

    def read(self, max_bytes: int = 256 * 1024) -> list[LogRecord]:
        """The next records, at most `max_bytes` with their headers, but at least one if there is
        one; []: nothing complete yet."""
        file = self._open()
        if file is None:
            return []
        self._seek(file)
        if self._at != self.next_sequence:
            return []
        records: list[LogRecord] = []
        end = self._offset + max_bytes
        for record, after in _records(file, self._offset, self._at, max_bytes):
            if records and after > end:
                break
            records.append(record)
            self._advance(after)
        return records

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int | None:
        if self._file is not None:
            return self._file
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(self._path, flags)
        except FileNotFoundError:
            return None
        if os.fstat(file).st_size == 0:  # another may take its place before the command starts
            os.close(file)
            return None
        self._file = file
        return file

    def _seek(self, file: int) -> None:
        """Come as near to the record wanted as the file allows: by MiB, then by record."""
        if self._at == self.next_sequence:
            return
        for offset in range(0, os.fstat(file).st_size, MIB):
            header = _header(os.pread(file, HEADER.size, offset))
            if header is None or header.sequence > self.next_sequence:
                break
            if header.sequence > self._at:
                self._offset, self._at = offset, header.sequence
        if self._at == self.next_sequence:  # it begins a MiB
            return
        for record, after in _records(file, self._offset, self._at):
            self._offset, self._at = after, record.sequence + 1
            if self._at == self.next_sequence:
                return

    def _advance(self, offset: int) -> None:
        self._offset = offset
        self._at += 1
        self.next_sequence = self._at


def count_records(path: Path) -> int:
    """How many records a reader from 0 would get. Walks them all: up to seconds for millions."""
    reader = LogReader(path)
    try:
        while reader.read(4 * MIB):
            pass
        return reader.next_sequence
    finally:
        reader.close()


@dataclass(frozen=True, slots=True)
class _Header:
    length: int
    stream: int
    sequence: int
    unix_ns: int


def _header(raw: bytes) -> _Header | None:
    if len(raw) < HEADER.size:
        return None
    length, stream, version, magic, sequence, unix_ns = HEADER.unpack(raw)
    if magic != MAGIC or version != VERSION or not STDOUT <= stream <= WORKER:
        return None
    return _Header(length, stream, sequence, unix_ns) if 1 <= length <= MOST_DATA_BYTES else None


def _records(
    file: int, offset: int, sequence: int, wanted_bytes: int = MIB
) -> Iterator[tuple[LogRecord, int]]:
    """The records from `offset` on, each with the offset after it, up to the first that is not
    whole or has not the next sequence. `wanted_bytes`: about so much is read at once."""
    most_bytes = wanted_bytes + MOST_DATA_BYTES + HEADER.size  # at least one record is in it
    while True:
        offset += _padding(offset)
        chunk = os.pread(file, min(MIB - offset % MIB, most_bytes), offset)  # of this MiB
        at = 0
        while at < len(chunk) and not _padding(offset + at):
            record = _record(chunk, at, sequence)
            if record is None:
                break
            at += HEADER.size + len(record.data)
            sequence += 1
            yield record, offset + at
        if at == 0:
            return
        offset += at


def _padding(offset: int) -> int:
    room = MIB - offset % MIB
    return room if room <= HEADER.size else 0


def _record(chunk: bytes, at: int, sequence: int) -> LogRecord | None:
    header = _header(chunk[at : at + HEADER.size])
    if header is None or header.sequence != sequence:
        return None
    data = chunk[at + HEADER.size : at + HEADER.size + header.length]
    if len(data) < header.length:
        return None
    return LogRecord(sequence, header.stream, header.unix_ns, data)
