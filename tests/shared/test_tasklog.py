"""The log's reader, on files as a keeper writes them and on files as an attacker would."""

import os
import random
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest

from shared.tasklog import LogReader, LogRecord, count_records

MIB = 2**20
HEADER_BYTES = 24


def record(sequence: int, data: bytes, stream: int = 1, magic: int = 0x4D48) -> bytes:
    header = struct.pack("<IBBHQQ", len(data), stream, 1, magic, sequence, 1000 + sequence)
    return header + data


def log_of(parts: Iterable[bytes]) -> bytes:
    """As the keeper lays records out: none crosses a MiB."""
    log = bytearray()
    sequence = 0
    for part in parts:
        while part:
            room = MIB - len(log) % MIB
            if room <= HEADER_BYTES:
                log += bytes(room)
                room = MIB
            fits = min(room - HEADER_BYTES, 65536)
            log += record(sequence, part[:fits])
            sequence += 1
            part = part[fits:]
    return bytes(log)


def read_all(reader: LogReader, max_bytes: int = 256 * 1024) -> list[LogRecord]:
    records: list[LogRecord] = []
    while more := reader.read(max_bytes):
        records += more
    reader.close()
    return records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture(scope="module")
def parts() -> list[bytes]:
    random.seed(7)
    sizes = [random.choice([1, 2, 70, 5000, 65536, 200_000]) for _ in range(120)]
    return [random.randbytes(size) for size in sizes]


def test_a_log_that_is_not_there_yet_is_empty(path: Path) -> None:
    reader = LogReader(path)
    assert reader.read() == []
    assert count_records(path) == 0
    path.write_bytes(b"")
    assert reader.read() == []
    path.unlink()
    path.write_bytes(record(0, b"hi", stream=2))  # another file in its place
    assert reader.read() == [LogRecord(0, 2, 1000, b"hi")]
    reader.close()


def test_every_byte_comes_back_in_order(path: Path, parts: list[bytes]) -> None:
    path.write_bytes(log_of(parts))
    records = read_all(LogReader(path))
    assert b"".join(r.data for r in records) == b"".join(parts)
    assert [r.sequence for r in records] == list(range(len(records)))
    assert count_records(path) == len(records)
    assert path.stat().st_size > 3 * MIB


def test_a_reader_can_begin_at_every_record(path: Path, parts: list[bytes]) -> None:
    path.write_bytes(log_of(parts))
    records = read_all(LogReader(path))
    for sequence in range(0, len(records) + 1, 7):
        reader = LogReader(path, sequence)
        assert reader.next_sequence == sequence
        assert read_all(reader) == records[sequence:]


def test_a_reader_waits_for_a_record_that_is_not_there_yet(path: Path) -> None:
    path.write_bytes(log_of([b"a", b"b"]))
    reader = LogReader(path, 3)
    assert reader.read() == []
    path.write_bytes(log_of([b"a", b"b", b"c", b"d"]))
    assert [r.data for r in reader.read()] == [b"d"]
    reader.close()


def test_a_torn_tail_is_not_returned_until_it_is_whole(path: Path) -> None:
    whole = log_of([b"first", b"second"])
    reader = LogReader(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        expected = [b"first"] if size >= HEADER_BYTES + 5 else []
        assert [r.data for r in read_all(LogReader(path))] == expected
    reader.close()


def test_it_follows_a_growing_log(path: Path, parts: list[bytes]) -> None:
    whole = log_of(parts)
    reader = LogReader(path)
    data = b""
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(whole), 77_777):
            file.write(whole[at : at + 77_777])
            while records := reader.read():
                data += b"".join(r.data for r in records)
    assert data == b"".join(parts)
    reader.close()


def test_records_stay_below_what_was_asked_but_one_always_comes(path: Path) -> None:
    path.write_bytes(log_of([b"x" * 100] * 50))
    reader = LogReader(path)
    assert len(reader.read(3 * 124)) == 3
    assert len(reader.read(1)) == 1
    assert reader.next_sequence == 4
    reader.close()


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(record(1, b"x", magic=0), id="magic"),
        pytest.param(record(5, b"x"), id="sequence ahead"),
        pytest.param(record(0, b"x"), id="sequence again"),
        pytest.param(record(1, b"x", stream=0), id="stream 0"),
        pytest.param(record(1, b"x", stream=4), id="stream 4"),
        pytest.param(record(1, b""), id="empty"),
        pytest.param(record(1, b"x" * 65537), id="too long"),
        pytest.param(struct.pack("<IBBHQQ", 2**32 - 1, 1, 1, 0x4D48, 1, 0), id="length absurd"),
        pytest.param(struct.pack("<IBBHQQ", 1, 1, 9, 0x4D48, 1, 0) + b"x", id="version"),
        pytest.param(bytes(100), id="zeros"),
        pytest.param(os.urandom(100), id="noise"),
    ],
)
def test_a_bad_record_is_the_end(path: Path, bad: bytes) -> None:
    path.write_bytes(record(0, b"good") + bad + record(1, b"after"))
    assert [r.data for r in read_all(LogReader(path))] == [b"good"]
    assert read_all(LogReader(path, 1)) == []
    assert count_records(path) == 1


def test_a_record_may_not_cross_a_mib(path: Path) -> None:
    filled = log_of([b"x" * 65536] * 15)
    path.write_bytes(filled + record(15, b"y" * 65536))
    assert len(read_all(LogReader(path))) == 15


def test_a_log_cut_shorter_under_a_reader_is_no_error(path: Path) -> None:
    path.write_bytes(log_of([b"a" * 100, b"b" * 100]))
    reader = LogReader(path)
    assert len(reader.read()) == 2
    os.truncate(path, 10)
    assert reader.read() == []
    reader.close()


def test_forged_heads_of_later_mibs_lead_nowhere(path: Path) -> None:
    whole = bytearray(log_of([b"x" * 65536] * 40))
    whole[MIB : MIB + 24] = record(2**63, b"")[:24]
    path.write_bytes(whole)
    assert read_all(LogReader(path, 35)) == []
    assert len(read_all(LogReader(path, 3))) == count_records(path) - 3
