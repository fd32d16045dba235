"""What is encoded by hand is what protobuf would have written."""

from hypothesis import given
from hypothesis import strategies as some

from procs.master_link.chunks import log_chunk, output_chunk
from procs.master_link.wire import timestamp_ns
from shared.pb import hivemind_pb2 as pb
from shared.taskdir import TaskKey
from shared.tasklog import LogRecord

NUMBERS = some.one_of(some.integers(0, 300), some.integers(0, 2**64 - 1))
KEYS = some.builds(TaskKey, some.text("abc.-", min_size=1), some.integers(1, 2**32 - 1))
BYTES = some.one_of(some.binary(max_size=300), some.integers(0, 20_000).map(bytes))
RECORDS = some.builds(LogRecord, NUMBERS, some.integers(1, 3), NUMBERS, BYTES)


@given(KEYS, some.binary(max_size=32), NUMBERS, NUMBERS, BYTES)
def test_an_outputs_chunk(
    key: TaskKey, sha256: bytes, total_bytes: int, offset: int, data: bytes
) -> None:
    assert pb.TaskOutputChunk.FromString(
        output_chunk(key, sha256, total_bytes, offset, data)
    ) == pb.TaskOutputChunk(
        task_id=key.task_id,
        attempt=key.attempt,
        sha256=sha256,
        total_bytes=total_bytes,
        offset=offset,
        data=data,
    )


@given(KEYS, some.lists(RECORDS, max_size=5), some.booleans())
def test_a_logs_chunk(key: TaskKey, records: list[LogRecord], end: bool) -> None:
    wanted = pb.TaskLogChunk(task_id=key.task_id, attempt=key.attempt, end=end)
    for one in records:
        stream = pb.LogStream.Name(one.stream)
        at = timestamp_ns(one.unix_ns)
        wanted.records.add(sequence=one.sequence, at=at, stream=stream, data=one.data)
    assert pb.TaskLogChunk.FromString(log_chunk(key, records, end)) == wanted
