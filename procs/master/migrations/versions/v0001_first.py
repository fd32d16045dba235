"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _nodes()
    _tasks()
    _attempts()


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("task_endpoint", sa.String, nullable=False),
        sa.Column("worker_version", sa.String, nullable=False),
        sa.Column("trust_level", sa.Integer, nullable=False),
        sa.Column("inventory", sa.LargeBinary, nullable=False),
        sa.Column("registered_unix_s", sa.Float, nullable=False),
        sa.Column("heard_unix_s", sa.Float, nullable=False),
        sa.Column("incarnation", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("desired_state", sa.Integer, nullable=False),
        sa.Column("lost", sa.Boolean, nullable=False),
        sa.Column("reward_total", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "reports",
        sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id"), primary_key=True),
        sa.Column("from_unix_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("to_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("task_id", sa.String(64), primary_key=True),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("demand", sa.JSON, nullable=False),
        sa.Column("submitted_unix_s", sa.Float, nullable=False),
        sa.Column("cancel_reason", sa.String),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("error", sa.String, nullable=False),
        sa.Column("ended_unix_s", sa.Float),
    )
    op.create_table(
        "refusals",
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.task_id"), primary_key=True),
        sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id"), primary_key=True),
        sa.Column("reason", sa.String, nullable=False),
    )


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.task_id"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id")),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("detail", sa.String, nullable=False),
        sa.Column("missed_beats", sa.Integer, nullable=False),
        sa.Column("log_next", sa.BigInteger, nullable=False),
        sa.Column("log_end", sa.Boolean, nullable=False),
        sa.Column("result", sa.LargeBinary),
    )
    op.create_index("attempts_by_phase", "attempts", ["phase"])
    op.create_index("attempts_by_node", "attempts", ["node_id", "phase"])
    op.create_table(
        "log_chunks",
        sa.Column("task_id", sa.String(64), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["task_id", "attempt"], ["attempts.task_id", "attempts.attempt"]),
    )
