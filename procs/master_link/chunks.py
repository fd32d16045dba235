"""TaskLogChunk and TaskOutputChunk, encoded by hand. Pure; nothing else belongs here.

Most of what the link sends are these two. As protobuf's own objects a chunk of 256 KiB costs forty
times as much (0.6 ms), and a chunk of short lines five times. Field numbers are the contract's.
"""

from collections.abc import Iterable

from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from shared.tasklog import LogRecord

NANOS = 10**9
OUTPUT_DATA = b"\x32"  # TaskOutputChunk.data = 6; the low three bits say: a length, and bytes
RECORD = b"\x1a"  # TaskLogChunk.records = 3
SEQUENCE, STREAM = b"\x08", b"\x18"  # LogRecord: 1 and 3, numbers
AT, DATA = b"\x12", b"\x22"  # LogRecord: 2 and 4, bytes
SECONDS, NANOSECONDS = b"\x08", b"\x10"  # Timestamp: 1 and 2
SMALL = [bytes((number,)) for number in range(128)]


def output_chunk(
    key: TaskKey, sha256: bytes, total_bytes: int, offset: int, data: bytes | memoryview
) -> bytes:
    head = pb.TaskOutputChunk(
        task_id=key.task_id,
        attempt=key.attempt,
        sha256=sha256,
        total_bytes=total_bytes,
        offset=offset,
    )
    return b"".join((head.SerializeToString(), OUTPUT_DATA, _varint(len(data)), data))


def log_chunk(key: TaskKey, records: Iterable[LogRecord], end: bool = False) -> bytes:
    head = pb.TaskLogChunk(task_id=key.task_id, attempt=key.attempt, end=end)
    parts = [head.SerializeToString()]
    for record in records:
        _add(parts, record)
    return b"".join(parts)


def _add(parts: list[bytes], record: LogRecord) -> None:
    seconds, nanos = divmod(record.unix_ns, NANOS)
    at = SECONDS + _varint(seconds) + NANOSECONDS + _varint(nanos)
    head = b"".join(
        (
            SEQUENCE, _varint(record.sequence), AT, SMALL[len(at)], at,
            STREAM, SMALL[record.stream], DATA, _varint(len(record.data)),
        )
    )  # fmt: skip
    parts += (RECORD, _varint(len(head) + len(record.data)), head, record.data)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; a high bit says that more follow."""
    if number < 128:
        return SMALL[number]
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
