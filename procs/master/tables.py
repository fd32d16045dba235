"""The master's tables. A change here needs a migration: a test compares the two.

Portable types only. Bulk (inputs, archives) and secrets are files, see files.py: a database keeps
deleted bytes. Times are UTC seconds.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()

NODES = sa.Table(
    "nodes",
    METADATA,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("task_endpoint", sa.String, nullable=False),
    sa.Column("worker_version", sa.String, nullable=False),
    sa.Column("trust_level", sa.Integer, nullable=False),
    sa.Column("inventory", sa.LargeBinary, nullable=False),  # NodeInventory
    sa.Column("registered_unix_s", sa.Float, nullable=False),
    sa.Column("heard_unix_s", sa.Float, nullable=False),
    sa.Column("incarnation", sa.String, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),  # of the last heartbeat
    sa.Column("state", sa.Integer, nullable=False),  # NodeState
    sa.Column("desired_state", sa.Integer, nullable=False),  # NodeState
    sa.Column("lost", sa.Boolean, nullable=False),
    sa.Column("reward_total", sa.BigInteger, nullable=False),  # of reports, by our own reckoning
    sa.Column("rewards_wrong", sa.Integer, nullable=False, server_default="0"),  # its claims
    sa.Column("key_sha256", sa.String(64), nullable=False, server_default=""),  # "": plain text
    sa.Column("token_sha256", sa.String(64), nullable=False, server_default=""),  # that let it in
    sa.Column("revoked", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("nodes_by_key", "key_sha256"),
)

TOKENS = sa.Table(
    "tokens",  # of each only a digest of its secret
    METADATA,
    sa.Column("secret_sha256", sa.String(64), primary_key=True),
    sa.Column("created_unix_s", sa.Float, nullable=False),
    sa.Column("expires_unix_s", sa.Float, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("used", sa.Integer, nullable=False),
    sa.Column("trust_level", sa.Integer, nullable=False),
)

APPLICANTS = sa.Table(
    "applicants",  # nodes without a token that wait for approval, or have just got it
    METADATA,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("key_sha256", sa.String(64), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("asked_unix_s", sa.Float, nullable=False),
    sa.Column("heard_unix_s", sa.Float, nullable=False),
    sa.Column("approved_unix_s", sa.Float),
    sa.Column("trust_level", sa.Integer, nullable=False),
)

VPN_PEERS = sa.Table(
    "vpn_peers",  # an address is given out once, also when its node is revoked
    METADATA,
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id"), primary_key=True),
    sa.Column("address", sa.String(15), nullable=False, unique=True),
    sa.Column("public_key", sa.String(44), nullable=False),  # "": the node has no tunnel
    sa.Index("vpn_peers_by_key", "public_key"),
)

REPORTS = sa.Table(
    "reports",
    METADATA,
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id"), primary_key=True),
    sa.Column("from_unix_ns", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("to_unix_ns", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # NodeStatusRequest
)

TASKS = sa.Table(
    "tasks",
    METADATA,
    sa.Column("task_id", sa.String(64), primary_key=True),
    sa.Column("spec", sa.LargeBinary, nullable=False),  # TaskAssignmentRequest, no secrets
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("demand", sa.JSON, nullable=False),  # core.Demand
    sa.Column("submitted_unix_s", sa.Float, nullable=False),
    sa.Column("cancel_reason", sa.String),  # not null: someone asked
    sa.Column("attempt", sa.Integer, nullable=False),  # the newest
    sa.Column("state", sa.Integer, nullable=False),  # TaskState, a final one; 0: not ended
    sa.Column("error", sa.String, nullable=False),
    sa.Column("ended_unix_s", sa.Float),
)

ATTEMPTS = sa.Table(
    "attempts",
    METADATA,
    sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.task_id"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("phase", sa.String(16), nullable=False),  # core.AttemptPhase
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id")),
    sa.Column("state", sa.Integer, nullable=False),  # TaskState, the node's last word
    sa.Column("detail", sa.String, nullable=False),
    sa.Column("missed_beats", sa.Integer, nullable=False),
    sa.Column("log_next", sa.BigInteger, nullable=False),  # the next sequence
    sa.Column("log_end", sa.Boolean, nullable=False),
    sa.Column("result", sa.LargeBinary),  # TaskResultRequest
    sa.Index("attempts_by_phase", "phase"),
    sa.Index("attempts_by_node", "node_id", "phase"),
)

REFUSALS = sa.Table(
    "refusals",  # for good: this node will never take this task
    METADATA,
    sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.task_id"), primary_key=True),
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.node_id"), primary_key=True),
    sa.Column("reason", sa.String, nullable=False),
)

LOG_CHUNKS = sa.Table(
    "log_chunks",
    METADATA,
    sa.Column("task_id", sa.String(64), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # TaskLogChunk
    sa.ForeignKeyConstraint(["task_id", "attempt"], ["attempts.task_id", "attempts.attempt"]),
)
