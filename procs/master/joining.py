"""Who may join, and as which node: a part of the caller's transaction.

A node is its key. Its id comes from the key, unless it had one before; so whatever answer is lost
or database is lost, the same key is the same node.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from procs.master import tokens
from procs.master.gate import Caller
from procs.master.tables import APPLICANTS, NODES
from shared.master_http import MASTER_NAME
from shared.pb import hivemind_pb2 as pb

NODE_ID = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")
APPROVAL_S = 86400.0  # an approval is good for so long: the answer may be lost
MOST_APPLICANTS = 1000  # anyone may apply
MOST_NAME_CHARACTERS = 200

Row = sa.RowMapping


class Refused(Exception):
    """This node is not taken, or not yet; the text says why, for its owner."""


class WithoutToken(StrEnum):
    """What becomes of a node that has no token."""

    TAKE = "take"
    APPROVE = "approve"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Place:
    """What a node is given. `token_sha256`: what let it in."""

    node_id: str
    key_sha256: str
    trust_level: int
    token_sha256: str


def admit(
    connection: sa.Connection,
    request: pb.NodeRegistrationRequest,
    key_sha256: str,
    without_token: WithoutToken,
    now_unix_s: float,
) -> Place | str:
    """A node without a certificate that is valid, by its token or by approval; or why not."""
    try:
        known = _by_key(connection, key_sha256)
        node_id = _node_id(connection, request, known, key_sha256)
        if known is not None and known["revoked"]:
            raise Refused(f"{node_id} was revoked by the master's owner")
        if request.join_token:
            level, token = _by_token(connection, request.join_token, known, now_unix_s)
            return Place(node_id, key_sha256, level, token)
        if known is not None and known["token_sha256"]:
            raise Refused(f"the certificate of {node_id} is not valid any more: it needs a token")
        applicant = Applicant(node_id, key_sha256, request.node_name[:MOST_NAME_CHARACTERS])
        level = _without_token(connection, applicant, without_token, now_unix_s)
        return Place(node_id, key_sha256, known["trust_level"] if known else level, "")
    except Refused as err:  # as a value: what was noted of an applicant is committed
        return str(err)


def recognise(
    connection: sa.Connection, caller: Caller, key_sha256: str
) -> Place | str:
    """A node with its certificate; a master that lost its memory takes it at level 0.
    `key_sha256`: of the request, if it wants another certificate."""
    node_id = caller.node_id
    if key_sha256 != caller.key_sha256:
        return f"{node_id} belongs to another key"
    row = connection.execute(sa.select(NODES).where(NODES.c.node_id == node_id)).mappings().first()
    if row is None:
        return Place(node_id, key_sha256, 0, "")
    if row["revoked"]:  # a moment ago: the gate has let it pass
        return f"{node_id} was revoked by the master's owner"
    if row["key_sha256"] != key_sha256:
        return f"{node_id} belongs to another key"
    return Place(node_id, key_sha256, row["trust_level"], row["token_sha256"])


def _node_id(
    connection: sa.Connection,
    request: pb.NodeRegistrationRequest,
    known: Row | None,
    key_sha256: str,
) -> str:
    """The key's own id, else the one that it asks for, if that is nobody's. A node of the time of
    plain text has no key yet: a token lets it keep its id."""
    asked = request.node_id
    if known is not None:
        if asked not in ("", known["node_id"]):
            raise Refused(f"{asked} belongs to another key: this one is {known['node_id']}")
        return str(known["node_id"])
    node_id = asked or f"node-{key_sha256[:16]}"
    if not NODE_ID.fullmatch(node_id) or node_id != node_id.lower() or node_id.endswith("."):
        raise Refused("node_id: 1 to 64 of a-z, 0-9, _ . - and no dot at its end")
    if node_id == MASTER_NAME:
        raise Refused(f"node_id: {MASTER_NAME} is the master's own name")
    row = connection.execute(sa.select(NODES).where(NODES.c.node_id == node_id)).mappings().first()
    if row is not None and (row["key_sha256"] or row["revoked"] or not request.join_token):
        raise Refused(f"{node_id} belongs to another key")
    return node_id


def _by_key(connection: sa.Connection, key_sha256: str) -> Row | None:
    query = sa.select(NODES).where(NODES.c.key_sha256 == key_sha256)
    return connection.execute(query).mappings().first()


def _by_token(
    connection: sa.Connection, text: str, known: Row | None, now_unix_s: float
) -> tuple[int, str]:
    """The trust level, which a token may raise and never lowers, and the token's digest."""
    spent = known["token_sha256"] if known is not None else ""
    try:
        token = tokens.spend(connection, text, spent, now_unix_s)
    except tokens.Unusable as err:
        raise Refused(str(err)) from err
    before = known["trust_level"] if known is not None else 0
    return max(before, token["trust_level"]), token["secret_sha256"]


# ------------------------------------------------------------------ without a token


@dataclass(frozen=True)
class Applicant:
    """A node that asks to be taken."""

    node_id: str
    key_sha256: str
    name: str


def _without_token(
    connection: sa.Connection, applicant: Applicant, policy: WithoutToken, now_unix_s: float
) -> int:
    """Its trust level."""
    if policy is WithoutToken.TAKE:
        return 0
    if policy is WithoutToken.REFUSE:
        raise Refused("this master takes no node without a join token")
    row = _apply(connection, applicant, now_unix_s)
    approved_unix_s = row["approved_unix_s"]
    if approved_unix_s is None or now_unix_s > approved_unix_s + APPROVAL_S:
        raise Refused(f"waiting for approval as {applicant.node_id}")
    return int(row["trust_level"])


def applicants(connection: sa.Connection) -> list[Row]:
    """Those that wait, the oldest first."""
    waits = APPLICANTS.c.approved_unix_s.is_(None)
    query = sa.select(APPLICANTS).where(waits).order_by(APPLICANTS.c.asked_unix_s)
    return list(connection.execute(query).mappings())


def approve(
    connection: sa.Connection, node_id: str, trust_level: int, now_unix_s: float
) -> bool:
    """A node that waits may come; one that is here gets this level, and is not revoked any more."""
    approved = connection.execute(
        APPLICANTS.update()
        .where(APPLICANTS.c.node_id == node_id)
        .values(approved_unix_s=now_unix_s, trust_level=trust_level)
    )
    changed = connection.execute(
        NODES.update()
        .where(NODES.c.node_id == node_id)
        .values(trust_level=trust_level, revoked=False)
    )
    return approved.rowcount + changed.rowcount > 0


def revoke(connection: sa.Connection, node_id: str) -> bool:
    """Nothing of this node is heard any more; an applicant is forgotten."""
    gone = connection.execute(APPLICANTS.delete().where(APPLICANTS.c.node_id == node_id))
    changed = connection.execute(
        NODES.update().where(NODES.c.node_id == node_id).values(revoked=True)
    )
    return gone.rowcount + changed.rowcount > 0


def revoked(connection: sa.Connection) -> set[str]:
    query = sa.select(NODES.c.node_id).where(NODES.c.revoked)
    return set(connection.execute(query).scalars())


def drop_old(connection: sa.Connection, before_unix_s: float) -> None:
    connection.execute(APPLICANTS.delete().where(APPLICANTS.c.heard_unix_s < before_unix_s))


def _apply(connection: sa.Connection, applicant: Applicant, now_unix_s: float) -> Row:
    """Note that it asks; one whose approval is used up waits again."""
    is_it = APPLICANTS.c.node_id == applicant.node_id
    row = connection.execute(sa.select(APPLICANTS).where(is_it)).mappings().first()
    if row is None:
        return _first_time(connection, applicant, now_unix_s)
    if row["key_sha256"] != applicant.key_sha256:
        raise Refused(f"{applicant.node_id} belongs to another key")
    values: dict[str, object] = {"heard_unix_s": now_unix_s, "name": applicant.name}
    approved_unix_s = row["approved_unix_s"]
    if approved_unix_s is not None and now_unix_s > approved_unix_s + APPROVAL_S:
        values["approved_unix_s"] = None
    connection.execute(APPLICANTS.update().where(is_it).values(**values))
    return row


def _first_time(connection: sa.Connection, applicant: Applicant, now_unix_s: float) -> Row:
    count = sa.select(sa.func.count()).select_from(APPLICANTS)
    if (connection.execute(count).scalar() or 0) >= MOST_APPLICANTS:
        raise Refused("too many nodes wait for approval already")
    connection.execute(
        APPLICANTS.insert().values(
            node_id=applicant.node_id,
            key_sha256=applicant.key_sha256,
            name=applicant.name,
            asked_unix_s=now_unix_s,
            heard_unix_s=now_unix_s,
            trust_level=0,
        )
    )
    is_it = APPLICANTS.c.node_id == applicant.node_id
    return connection.execute(sa.select(APPLICANTS).where(is_it)).mappings().one()
