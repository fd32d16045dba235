"""Addresses and public keys of nodes in the VPN."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "vpn_peers",
        sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id"), primary_key=True),
        sa.Column("address", sa.String(15), nullable=False, unique=True),
        sa.Column("public_key", sa.String(44), nullable=False),
    )
    op.create_index("vpn_peers_by_key", "vpn_peers", ["public_key"])
