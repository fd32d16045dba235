"""Nodes and their reports in the database: each function is a part of the caller's transaction."""

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

import sqlalchemy as sa

from procs.master import core, task_records
from procs.master.joining import Place
from procs.master.tables import NODES, REPORTS
from procs.master.task_records import Key
from shared import rewards
from shared.pb import hivemind_pb2 as pb

log = logging.getLogger("master")

Row = sa.RowMapping


@dataclass
class Beat:
    """What a heartbeat came to."""

    known: bool
    desired_state: pb.NodeState = pb.NODE_STATE_UNSPECIFIED
    forget: list[Key] = field(default_factory=list)


def node(connection: sa.Connection, node_id: str) -> Row | None:
    query = sa.select(NODES).where(NODES.c.node_id == node_id)
    return connection.execute(query).mappings().first()


def nodes(connection: sa.Connection) -> list[Row]:
    return list(connection.execute(sa.select(NODES).order_by(NODES.c.registered_unix_s)).mappings())


def register(
    connection: sa.Connection,
    request: pb.NodeRegistrationRequest,
    place: Place,
    now_unix_s: float,
) -> Row:
    """A new node, or a known one with what is new about it. It keeps its id."""
    node_id = place.node_id or f"node-{uuid.uuid4().hex[:16]}"
    values = {
        "name": request.node_name,
        "task_endpoint": request.task_endpoint,
        "worker_version": request.worker_version,
        "inventory": request.inventory.SerializeToString(),
        "trust_level": place.trust_level,
        "heard_unix_s": now_unix_s,
        "lost": False,
    }
    if place.key_sha256:
        values |= {"key_sha256": place.key_sha256, "token_sha256": place.token_sha256}
    if node(connection, node_id) is not None:
        connection.execute(NODES.update().where(NODES.c.node_id == node_id).values(**values))
    else:
        _add(connection, node_id, now_unix_s, values)
    row = node(connection, node_id)
    assert row is not None  # written in this transaction
    return row


def heartbeat(connection: sa.Connection, request: pb.HeartbeatRequest, now_unix_s: float) -> Beat:
    """Note that the node lives and compare what it holds with what it should hold."""
    row = node(connection, request.node_id)
    if row is None:
        return Beat(known=False)
    keys = [Key(t.task_id, t.attempt) for t in request.tasks]
    beat = Beat(True, row["desired_state"], task_records.ended(connection, keys))
    if _is_news(row, request):
        connection.execute(
            NODES.update()
            .where(NODES.c.node_id == request.node_id)
            .values(
                heard_unix_s=now_unix_s,
                incarnation=request.incarnation,
                sequence=request.sequence,
                state=request.state,
                lost=False,
            )
        )
        _compare(connection, request.node_id, set(keys))
    return beat


def lose(connection: sa.Connection, node_id: str, now_unix_s: float) -> list[Key]:
    """The node is gone; returns the attempts that it had."""
    connection.execute(NODES.update().where(NODES.c.node_id == node_id).values(lost=True))
    return task_records.lose(connection, node_id, now_unix_s)


def report(connection: sa.Connection, request: pb.NodeStatusRequest) -> Row | None:
    """Store a report, once for each interval; None: the node is not known."""
    row = node(connection, request.node_id)
    if row is None:
        return None
    from_unix_ns = getattr(request, "from").ToNanoseconds()
    known = sa.select(REPORTS.c.node_id).where(
        REPORTS.c.node_id == request.node_id, REPORTS.c.from_unix_ns == from_unix_ns
    )
    if connection.execute(known).first() is None:
        earned, is_wrong = _earned(request)
        connection.execute(
            REPORTS.insert().values(
                node_id=request.node_id,
                from_unix_ns=from_unix_ns,
                to_unix_ns=request.to.ToNanoseconds(),
                body=request.SerializeToString(),
            )
        )
        connection.execute(
            NODES.update()
            .where(NODES.c.node_id == request.node_id)
            .values(
                reward_total=NODES.c.reward_total + earned,
                rewards_wrong=NODES.c.rewards_wrong + is_wrong,
            )
        )
    return row


def _earned(request: pb.NodeStatusRequest) -> tuple[int, bool]:
    """What the formula makes of the figures, and whether the node claims something else."""
    try:
        earned = rewards.of_report(request)
    except rewards.NoPercentageError as err:
        log.warning("node %s reports what can't be: %s", request.node_id, err)
        return 0, True
    if earned != request.reward:
        claim = request.reward
        log.warning("node %s claims %d for what earns %d", request.node_id, claim, earned)
    return earned, earned != request.reward


def drop_reports(connection: sa.Connection, before_unix_s: float) -> None:
    before_ns = int(before_unix_s * 1e9)
    connection.execute(REPORTS.delete().where(REPORTS.c.to_unix_ns < before_ns))


def last_report(connection: sa.Connection, node_id: str) -> bytes | None:
    query = (
        sa.select(REPORTS.c.body)
        .where(REPORTS.c.node_id == node_id)
        .order_by(REPORTS.c.from_unix_ns.desc())
        .limit(1)
    )
    return connection.execute(query).scalar()


def set_desired_state(connection: sa.Connection, node_id: str, state: int) -> bool:
    """What the master wants of the node; False: it is not known."""
    update = NODES.update().where(NODES.c.node_id == node_id).values(desired_state=state)
    return connection.execute(update).rowcount > 0


def for_placement(
    rows: Iterable[Row], live: Iterable[Row], put_off: frozenset[str] = frozenset()
) -> list[core.Node]:
    """The nodes that are not lost, with what the live attempts ask of each."""
    given = task_records.given(live)
    return [
        _placeable(row, tuple(given.get(row["node_id"], ())), row["node_id"] not in put_off)
        for row in rows
        if not row["lost"] and not row["revoked"]
    ]


def _placeable(row: Row, given: tuple[core.Demand, ...], may_ask: bool) -> core.Node:
    inventory = pb.NodeInventory.FromString(row["inventory"])
    wanted_ready = row["desired_state"] in (pb.NODE_STATE_UNSPECIFIED, pb.NODE_STATE_READY)
    return core.Node(
        node_id=row["node_id"],
        ready=may_ask and wanted_ready and row["state"] == pb.NODE_STATE_READY,
        trust_level=row["trust_level"],
        cpus=inventory.cpu_count,
        memory_bytes=inventory.memory_bytes,
        disk_bytes=inventory.disk_bytes,
        gpu_memory_bytes=tuple(g.memory_bytes for g in inventory.gpus),
        labels=dict(inventory.labels),
        given=given,
    )


def _add(
    connection: sa.Connection,
    node_id: str,
    now_unix_s: float,
    values: dict[str, object],
) -> None:
    connection.execute(
        NODES.insert().values(
            node_id=node_id,
            registered_unix_s=now_unix_s,
            incarnation="",
            sequence=0,
            state=pb.NODE_STATE_UNSPECIFIED,  # nothing is placed before its first heartbeat
            desired_state=pb.NODE_STATE_UNSPECIFIED,
            reward_total=0,
            rewards_wrong=0,
            **values,
        )
    )


def _is_news(row: Row, request: pb.HeartbeatRequest) -> bool:
    """False: the same heartbeat again, or one that a newer has overtaken."""
    return bool(
        row["incarnation"] != request.incarnation
        or request.sequence > row["sequence"]
        or row["lost"]
    )


def _compare(connection: sa.Connection, node_id: str, held: set[Key]) -> None:
    """Attempts that the node names are held; those it does not name are counted as missing."""
    for row in task_records.held_by(connection, node_id):
        key = Key(row["task_id"], row["attempt"])
        if key in held:
            task_records.accept(connection, key, node_id)
            if row["missed_beats"]:
                task_records.named(connection, row)
        elif row["phase"] == core.AttemptPhase.HELD:
            task_records.missing(connection, row)
