"""Tasks and attempts in the database: each function is a part of the caller's transaction.

Every change of an attempt's phase goes through `_move`, and so through core's table.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import sqlalchemy as sa

from procs.master import core
from procs.master.core import AttemptPhase, Demand, Event
from procs.master.tables import ATTEMPTS, NODES, REFUSALS, TASKS
from shared import rewards
from shared.pb import hivemind_pb2 as pb

FINAL = frozenset(
    {
        pb.TASK_STATE_SUCCEEDED,
        pb.TASK_STATE_FAILED,
        pb.TASK_STATE_CANCELLED,
        pb.TASK_STATE_TIMED_OUT,
        pb.TASK_STATE_OUT_OF_MEMORY,
        pb.TASK_STATE_OUT_OF_DISK,
    }
)
WORTH_ANOTHER_ATTEMPT = frozenset(
    {pb.FAILURE_CAUSE_INTERRUPTED, pb.FAILURE_CAUSE_REMOVED, pb.FAILURE_CAUSE_NODE}
)
LIVE = [p.value for p in AttemptPhase if core.is_live(p)]
Row = sa.RowMapping
_WITHOUT_SPEC = [c for c in TASKS.c if c.name != "spec"]
_ATTEMPT_COLUMNS = [  # beside the task's; its own `state` keeps its name
    c.label("node_said") if c.name == "state" else c
    for c in ATTEMPTS.c
    if c.name not in ("task_id", "attempt")
]


class Key(NamedTuple):
    """Names an attempt."""

    task_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.task_id}.{self.attempt}"


class NotYours(Exception):
    """A node speaks of an attempt that another node was given."""


# ------------------------------------------------------------------ reading


def task(connection: sa.Connection, task_id: str) -> Row | None:
    """A task without its spec, which may be large."""
    query = sa.select(*_WITHOUT_SPEC).where(TASKS.c.task_id == task_id)
    return connection.execute(query).mappings().first()


def spec(connection: sa.Connection, task_id: str) -> pb.TaskAssignmentRequest:
    """The assignment of a task that is there, without attempt and secrets."""
    body = connection.execute(sa.select(TASKS.c.spec).where(TASKS.c.task_id == task_id)).scalar()
    return pb.TaskAssignmentRequest.FromString(body or b"")


def attempt(connection: sa.Connection, key: Key) -> Row | None:
    query = sa.select(ATTEMPTS).where(_is(key))
    return connection.execute(query).mappings().first()


def wanted(connection: sa.Connection, key: Key) -> Row | None:
    """The attempt, if it is live: None means that nobody waits for what is said of it."""
    row = attempt(connection, key)
    return row if row is not None and core.is_live(AttemptPhase(row["phase"])) else None


def newest(connection: sa.Connection) -> list[Row]:
    """Each task, joined with its newest attempt; newest first."""
    query = _newest().order_by(TASKS.c.submitted_unix_s.desc(), TASKS.c.task_id)
    return list(connection.execute(query).mappings())


def one_newest(connection: sa.Connection, task_id: str) -> Row | None:
    """One task, joined with its newest attempt."""
    return connection.execute(_newest().where(TASKS.c.task_id == task_id)).mappings().first()


def live_tasks(connection: sa.Connection) -> list[str]:
    query = sa.select(TASKS.c.task_id).where(TASKS.c.state == 0)
    return list(connection.execute(query).scalars())


def specs(connection: sa.Connection) -> list[bytes]:
    """The specs of the tasks that have not ended."""
    return list(connection.execute(sa.select(TASKS.c.spec).where(TASKS.c.state == 0)).scalars())


def live(connection: sa.Connection) -> list[Row]:
    """Every live attempt, with what its task asks for."""
    columns = (TASKS.c.priority, TASKS.c.demand, TASKS.c.submitted_unix_s, TASKS.c.cancel_reason)
    query = (
        sa.select(ATTEMPTS, *columns)
        .join(TASKS, TASKS.c.task_id == ATTEMPTS.c.task_id)
        .where(ATTEMPTS.c.phase.in_(LIVE))
    )
    return list(connection.execute(query).mappings())


def waiting(connection: sa.Connection, rows: Iterable[Row]) -> list[core.Waiting]:
    """Those of the live attempts that have no node."""
    lone = [row for row in rows if row["phase"] == AttemptPhase.WAITING]
    refused = _refusals(connection) if lone else {}
    return [
        core.Waiting(
            row["task_id"],
            row["attempt"],
            row["priority"],
            row["submitted_unix_s"],
            Demand(**row["demand"]),
            refused.get(row["task_id"], {}),
            _failed_on(connection, row["task_id"]) if row["attempt"] > 1 else frozenset(),
        )
        for row in lone
    ]


def given(rows: Iterable[Row]) -> dict[str, list[Demand]]:
    """By node: what the live attempts ask of it."""
    found: dict[str, list[Demand]] = {}
    for row in rows:
        if row["node_id"] is not None:
            found.setdefault(row["node_id"], []).append(Demand(**row["demand"]))
    return found


# ------------------------------------------------------------------ changing


def submit(
    connection: sa.Connection, spec: pb.TaskAssignmentRequest, demand: Demand, now_unix_s: float
) -> bool:
    """Store a task, waiting for its first node; False: one of this id is there already."""
    if task(connection, spec.task_id) is not None:
        return False
    connection.execute(
        TASKS.insert().values(
            task_id=spec.task_id,
            spec=spec.SerializeToString(deterministic=True),
            priority=spec.priority,
            demand=asdict(demand),
            submitted_unix_s=now_unix_s,
            attempt=1,
            state=pb.TASK_STATE_UNSPECIFIED,
            error="",
        )
    )
    _add_attempt(connection, Key(spec.task_id, 1))
    return True


def offer(connection: sa.Connection, key: Key, node_id: str) -> bool:
    """Give an attempt that waits to a node; False: it does not wait any more."""
    row = attempt(connection, key)
    if row is None or row["phase"] != AttemptPhase.WAITING:
        return False
    _move(connection, row, Event.PLACED, node_id=node_id)
    return True


def accept(connection: sa.Connection, key: Key, node_id: str) -> None:
    """The node holds it, by its own word."""
    row = attempt(connection, key)
    if row is not None and row["node_id"] == node_id:
        _move(connection, row, Event.ACCEPTED, missed_beats=0)


def put_off(
    connection: sa.Connection, key: Key, node_id: str, now_unix_s: float, never: str = ""
) -> None:
    """The node refused it; `never`: why it always will."""
    row = attempt(connection, key)
    if row is None or row["node_id"] != node_id:
        return
    if not _move(connection, row, Event.PUT_OFF, node_id=None, state=0, detail=""):
        return
    if never:
        pair = {"task_id": key.task_id, "node_id": node_id}
        connection.execute(REFUSALS.delete().filter_by(**pair))
        connection.execute(REFUSALS.insert().values(**pair, reason=never))
    not_held(connection, key, now_unix_s)  # if someone wants it cancelled


def refuse(connection: sa.Connection, key: Key, reason: str, now_unix_s: float) -> None:
    """No node will take it."""
    row = attempt(connection, key)
    if row is not None and _move(connection, row, Event.REFUSED):
        _end(connection, key.task_id, pb.TASK_STATE_FAILED, reason, now_unix_s)


def named(connection: sa.Connection, row: Row) -> None:
    """A heartbeat named this attempt again: the one before had crossed its assignment."""
    _set(connection, row, missed_beats=0)


def missing(connection: sa.Connection, row: Row) -> None:
    """A heartbeat did not name this attempt; at the second in a row it is assigned again."""
    missed = row["missed_beats"] + 1
    if missed < core.MISSED_BEATS:
        _set(connection, row, missed_beats=missed)
    else:
        _move(connection, row, Event.MISSING, missed_beats=0)


def lose(connection: sa.Connection, node_id: str, now_unix_s: float) -> list[Key]:
    """The node is gone: its attempts are others' to make. Returns those that it had."""
    rows = held_by(connection, node_id)
    for row in rows:
        owner = task(connection, row["task_id"])
        assert owner is not None  # an attempt has its task
        event = core.loss_event(owner["cancel_reason"] is not None)
        _move(connection, row, event)
        if event is Event.CANCELLED:
            reason = owner["cancel_reason"]
            _end(connection, row["task_id"], pb.TASK_STATE_CANCELLED, reason, now_unix_s)
        else:
            _try_again(connection, row, f"node {node_id} was lost", now_unix_s)
    return [Key(row["task_id"], row["attempt"]) for row in rows]


def held_by(connection: sa.Connection, node_id: str) -> list[Row]:
    """Attempts that were given to this node and have not ended."""
    query = sa.select(ATTEMPTS).where(ATTEMPTS.c.node_id == node_id, ATTEMPTS.c.phase.in_(LIVE))
    return list(connection.execute(query).mappings())


def ended(connection: sa.Connection, keys: Iterable[Key]) -> list[Key]:
    """Those of `keys` that are recorded as ended or superseded."""
    rows = ((key, attempt(connection, key)) for key in keys)
    return [
        key for key, row in rows if row is not None and not core.is_live(AttemptPhase(row["phase"]))
    ]


def cancel(connection: sa.Connection, task_id: str, reason: str, now_unix_s: float) -> bool:
    """Someone wants the task to end; False: there is none of this id. Twice: the first reason."""
    row = task(connection, task_id)
    if row is None:
        return False
    if row["state"] or row["cancel_reason"] is not None:
        return True
    connection.execute(
        TASKS.update().where(TASKS.c.task_id == task_id).values(cancel_reason=reason)
    )
    newest_row = attempt(connection, Key(task_id, row["attempt"]))
    if newest_row is not None and newest_row["phase"] == AttemptPhase.WAITING:
        not_held(connection, Key(task_id, row["attempt"]), now_unix_s)
    return True


def not_held(connection: sa.Connection, key: Key, now_unix_s: float) -> None:
    """An attempt that is to be cancelled is on no node: it has ended."""
    row, owner = attempt(connection, key), task(connection, key.task_id)
    if row is None or owner is None or owner["cancel_reason"] is None:
        return
    if _move(connection, row, Event.CANCELLED):
        reason = owner["cancel_reason"]
        _end(connection, key.task_id, pb.TASK_STATE_CANCELLED, reason, now_unix_s)


def status(connection: sa.Connection, request: pb.TaskStatusRequest) -> bool:
    """The node's word on an attempt; False: nobody waits for it. States only go forward."""
    key = Key(request.task_id, request.attempt)
    row = wanted(connection, key)
    if row is None:
        return False
    check_holder(row, request.node_id)
    if request.state in FINAL:
        return True  # the result's to say
    accept(connection, key, request.node_id)
    if request.state >= row["state"]:
        _set(connection, row, state=request.state, detail=request.detail)
    return True


def finish(connection: sa.Connection, request: pb.TaskResultRequest, now_unix_s: float) -> None:
    """Store the result of an attempt that is wanted."""
    row = wanted(connection, Key(request.task_id, request.attempt))
    owner = task(connection, request.task_id)
    if row is None or owner is None:
        return
    worth_another = request.state == pb.TASK_STATE_FAILED and request.cause in WORTH_ANOTHER_ATTEMPT
    cancel_wanted = owner["cancel_reason"] is not None
    event = core.result_event(worth_another, request.attempt, cancel_wanted)
    body = request.SerializeToString(deterministic=True)
    _move(connection, row, event, result=body, state=request.state, detail="")
    if earned(request) != request.reward:
        connection.execute(
            NODES.update()
            .where(NODES.c.node_id == row["node_id"])
            .values(rewards_wrong=NODES.c.rewards_wrong + 1)
        )
    if event is Event.INTERRUPTED:
        _try_again(connection, row, request.error, now_unix_s)
    else:
        _end(connection, request.task_id, request.state, request.error, now_unix_s)


def earned(result: pb.TaskResultRequest) -> int:
    """What the formula makes of the figures; those that can't be earn nothing."""
    try:
        return rewards.of_result(result)
    except rewards.NoPercentageError:
        return 0


def may_speak_of(connection: sa.Connection, key: Key, node_id: str) -> bool:
    """Whether the attempt is this node's, or nobody's that is known here."""
    row = attempt(connection, key)
    return row is None or row["node_id"] == node_id


def check_holder(row: Row, node_id: str) -> None:
    if row["node_id"] != node_id:
        raise NotYours(f"node {node_id} does not hold {row['task_id']}.{row['attempt']}")


# ------------------------------------------------------------------ parts


def _is(key: Key) -> sa.ColumnElement[bool]:
    return sa.and_(ATTEMPTS.c.task_id == key.task_id, ATTEMPTS.c.attempt == key.attempt)


def _newest() -> sa.Select[Any]:
    joined = sa.and_(ATTEMPTS.c.task_id == TASKS.c.task_id, ATTEMPTS.c.attempt == TASKS.c.attempt)
    return sa.select(*_WITHOUT_SPEC, *_ATTEMPT_COLUMNS).join(ATTEMPTS, joined)


def _refusals(connection: sa.Connection) -> dict[str, dict[str, str]]:
    """By task: which nodes will never take it, and why."""
    query = (
        sa.select(REFUSALS)
        .join(TASKS, TASKS.c.task_id == REFUSALS.c.task_id)
        .where(TASKS.c.state == 0)
    )
    found: dict[str, dict[str, str]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["task_id"], {})[row["node_id"]] = row["reason"]
    return found


def _failed_on(connection: sa.Connection, task_id: str) -> frozenset[str]:
    query = sa.select(ATTEMPTS.c.node_id).where(
        ATTEMPTS.c.task_id == task_id, ATTEMPTS.c.node_id.is_not(None)
    )
    return frozenset(connection.execute(query).scalars())


def _set(connection: sa.Connection, row: Row, **values: object) -> None:
    key = Key(row["task_id"], row["attempt"])
    connection.execute(ATTEMPTS.update().where(_is(key)).values(**values))


def _move(connection: sa.Connection, row: Row, event: Event, **values: object) -> bool:
    """Move an attempt by core's table; False: the event is no news and nothing changes."""
    phase = core.move(AttemptPhase(row["phase"]), event)
    if phase is None:
        return False
    _set(connection, row, phase=phase.value, **values)
    return True


def _add_attempt(connection: sa.Connection, key: Key) -> None:
    connection.execute(
        ATTEMPTS.insert().values(
            task_id=key.task_id,
            attempt=key.attempt,
            phase=AttemptPhase.WAITING.value,
            state=pb.TASK_STATE_UNSPECIFIED,
            detail="",
            missed_beats=0,
            log_next=0,
            log_end=False,
        )
    )


def _try_again(connection: sa.Connection, row: Row, why: str, now_unix_s: float) -> None:
    """Another attempt of the task, unless there were enough."""
    task_id, number = row["task_id"], row["attempt"]
    if number >= core.MAX_ATTEMPTS:
        reason = f"given up after {number} attempts: {why}"
        _end(connection, task_id, pb.TASK_STATE_FAILED, reason, now_unix_s)
        return
    _add_attempt(connection, Key(task_id, number + 1))
    connection.execute(TASKS.update().where(TASKS.c.task_id == task_id).values(attempt=number + 1))


def _end(
    connection: sa.Connection, task_id: str, state: int, error: str, now_unix_s: float
) -> None:
    connection.execute(
        TASKS.update()
        .where(TASKS.c.task_id == task_id)
        .values(state=state, error=error, ended_unix_s=now_unix_s)
    )
