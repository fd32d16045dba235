"""How often a node claimed another reward than the formula gives."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    column = sa.Column("rewards_wrong", sa.Integer, nullable=False, server_default="0")
    op.add_column("nodes", column)
