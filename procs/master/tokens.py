"""Join tokens in the database: a digest of the secret, what it is good for, how often it was used.

Each function is a part of the caller's transaction. A token itself is shown once, when it is made.
"""

import hashlib
import secrets

import sqlalchemy as sa

from procs.master.tables import TOKENS
from shared.join_token import base32, read_token

SECRET_BYTES = 20
Row = sa.RowMapping


class Unusable(Exception):
    """The token does not let this node in; the text says why."""


def new_secret() -> str:
    return base32(secrets.token_bytes(SECRET_BYTES))


def create(
    connection: sa.Connection,
    secret: str,
    ttl_s: float,
    uses: int,
    trust_level: int,
    now_unix_s: float,
) -> None:
    connection.execute(
        TOKENS.insert().values(
            secret_sha256=_digest(secret),
            created_unix_s=now_unix_s,
            expires_unix_s=now_unix_s + ttl_s,
            uses=uses,
            used=0,
            trust_level=trust_level,
        )
    )


def spend(connection: sa.Connection, text: str, spent_before: str, now_unix_s: float) -> Row:
    """Use the token once; not counted again for a node that it has let in (`spent_before`)."""
    try:
        digest = _digest(read_token(text).secret)
    except ValueError as err:
        raise Unusable("this is no join token") from err
    query = sa.select(TOKENS).where(TOKENS.c.secret_sha256 == digest)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise Unusable("this master does not know this join token")
    if now_unix_s >= row["expires_unix_s"]:
        raise Unusable("this join token has expired")
    if spent_before == digest:
        return row
    if row["used"] >= row["uses"]:
        raise Unusable("this join token has been used up")
    connection.execute(
        TOKENS.update().where(TOKENS.c.secret_sha256 == digest).values(used=row["used"] + 1)
    )
    return row


def drop_old(connection: sa.Connection, before_unix_s: float) -> None:
    connection.execute(TOKENS.delete().where(TOKENS.c.expires_unix_s < before_unix_s))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
