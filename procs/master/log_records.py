"""The tasks' logs in the database: gap-free, each record once. Part of the caller's transaction."""

from collections.abc import Iterable, Iterator

import sqlalchemy as sa

from procs.master import task_records
from procs.master.tables import ATTEMPTS, LOG_CHUNKS
from procs.master.task_records import Key
from shared.pb import hivemind_pb2 as pb


def append_all(
    connection: sa.Connection, chunks: Iterable[pb.TaskLogChunk], node_id: str | None = None
) -> dict[Key, int]:
    """The same for what came together, of each attempt in one piece."""
    pieces: dict[Key, pb.TaskLogChunk] = {}
    for chunk in chunks:
        pieces.setdefault(Key(chunk.task_id, chunk.attempt), pb.TaskLogChunk()).MergeFrom(chunk)
    return {key: append(connection, piece, node_id) for key, piece in pieces.items()}


def append(connection: sa.Connection, chunk: pb.TaskLogChunk, node_id: str | None = None) -> int:
    """Store what is new in `chunk` and say which sequence comes next.

    `node_id`: who brings it, where that is proven; NotYours if it is not the holder. After a gap
    nothing is stored: the answer sends the worker back. What nobody waits for is acknowledged and
    dropped.
    """
    key = Key(chunk.task_id, chunk.attempt)
    row = task_records.wanted(connection, key)
    if row is None:
        return _already_ended(connection, key, chunk)
    if node_id is not None:
        task_records.check_holder(row, node_id)
    fresh = [r for r in chunk.records if r.sequence >= row["log_next"]]
    following = row["log_next"] + len(fresh)
    if [r.sequence for r in fresh] != list(range(row["log_next"], following)):
        return int(row["log_next"])
    if fresh:
        body = pb.TaskLogChunk(records=fresh).SerializeToString()
        connection.execute(
            LOG_CHUNKS.insert().values(
                task_id=key.task_id,
                attempt=key.attempt,
                first_sequence=row["log_next"],
                body=body,
            )
        )
    ends = bool(row["log_end"] or chunk.end)
    if fresh or ends != row["log_end"]:
        connection.execute(
            ATTEMPTS.update()
            .where(ATTEMPTS.c.task_id == key.task_id, ATTEMPTS.c.attempt == key.attempt)
            .values(log_next=following, log_end=ends)
        )
    return int(following)


def read(connection: sa.Connection, key: Key, from_sequence: int) -> list[pb.LogRecord]:
    """The records from a sequence on; at most a few chunks of them, an empty list at the end."""
    before = (
        sa.select(sa.func.max(LOG_CHUNKS.c.first_sequence))
        .where(_of(key), LOG_CHUNKS.c.first_sequence <= from_sequence)
        .scalar_subquery()
    )
    query = (
        sa.select(LOG_CHUNKS.c.body)
        .where(_of(key), LOG_CHUNKS.c.first_sequence >= before)
        .order_by(LOG_CHUNKS.c.first_sequence)
        .limit(4)
    )
    bodies = connection.execute(query).scalars()
    return [r for body in bodies for r in _records(body) if r.sequence >= from_sequence]


def _records(body: bytes) -> Iterator[pb.LogRecord]:
    yield from pb.TaskLogChunk.FromString(body).records


def _of(key: Key) -> sa.ColumnElement[bool]:
    return sa.and_(LOG_CHUNKS.c.task_id == key.task_id, LOG_CHUNKS.c.attempt == key.attempt)


def _already_ended(connection: sa.Connection, key: Key, chunk: pb.TaskLogChunk) -> int:
    row = task_records.attempt(connection, key)
    stored = int(row["log_next"]) if row is not None else 0
    return max([stored, *(r.sequence + 1 for r in chunk.records)])
