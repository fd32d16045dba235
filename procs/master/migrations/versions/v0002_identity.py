"""Keys of nodes, join tokens, and nodes that wait for approval."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for column in (
        sa.Column("key_sha256", sa.String(64), nullable=False, server_default=""),
        sa.Column("token_sha256", sa.String(64), nullable=False, server_default=""),
        sa.Column("revoked", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("nodes", column)
    op.create_index("nodes_by_key", "nodes", ["key_sha256"])
    op.create_table(
        "tokens",
        sa.Column("secret_sha256", sa.String(64), primary_key=True),
        sa.Column("created_unix_s", sa.Float, nullable=False),
        sa.Column("expires_unix_s", sa.Float, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("used", sa.Integer, nullable=False),
        sa.Column("trust_level", sa.Integer, nullable=False),
    )
    op.create_table(
        "applicants",
        sa.Column("node_id", sa.String(64), primary_key=True),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("asked_unix_s", sa.Float, nullable=False),
        sa.Column("heard_unix_s", sa.Float, nullable=False),
        sa.Column("approved_unix_s", sa.Float),
        sa.Column("trust_level", sa.Integer, nullable=False),
    )
