"""The tables (`RUNS`, ...): statements are written on them, without sessions or classes of rows.

Rows never leave the package: `codec.py` turns them into the values of model.py. Structured values
are packed JSON (packing.py), which neither database needs to look into. Instants are milliseconds.
What a run's row set costs while it waits is kept small on purpose: the parts that never change
(`run_inputs`) are apart from the row that every append rewrites, and children refer to runs by
number, not by id.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    UniqueConstraint,
    false,
    text,
)

from ci_platform.model import OperationState, RunState

SCHEMA_VERSION = "0011"
LOG_HOT_BYTES = 64 << 10  # of rows: a log that has fewer stays rows when its step has ended

# Ids are compared byte by byte: their order must not depend on the database's locale.
Id = String().with_variant(String(collation="C"), "postgresql")
# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

_RUN_STATES = ", ".join(f"'{state}'" for state in RunState)
_OPERATION_STATES = ", ".join(f"'{state}'" for state in OperationState)

METADATA = MetaData()


def _partial(name: str, *columns: str | TextClause, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


def _run_number(name: str, *, primary_key: bool = False) -> Column[int]:
    """A reference to a run, whose deletion takes the row with it."""
    return Column(
        name,
        RowNumber,
        ForeignKey("runs.n", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
        autoincrement=False,
    )


def _zero(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _no(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=false())


# Which schema this database has; the table and column that Alembic looks at.
SCHEMA = Table(
    "alembic_version",
    METADATA,
    Column("version_num", String(32), primary_key=True),
)

# The last number given to a run of a repository. It outlives the runs.
RUN_COUNTERS = Table(
    "run_counters",
    METADATA,
    Column("repository_id", Id, primary_key=True),
    Column("last_number", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

RUNS = Table(
    "runs",
    METADATA,
    Column("n", RowNumber, primary_key=True),
    Column("id", Id, unique=True, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("repository_id", Id, nullable=False),
    Column("pipeline", String, nullable=False),
    Column("ref", String, nullable=False),
    Column("commit", String, nullable=False),
    Column("resume", String, nullable=False),
    Column("trigger", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("actor_id", String),
    Column("trusted", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("timeout_ms", BigInteger),
    Column("state", String, nullable=False),
    Column("reason", String),
    Column("last_seq", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("worker", String),
    Column("lease_until_ms", BigInteger),
    # Only while the run may be claimed: None while leased, paused or ended.
    Column("ready_ms", BigInteger),
    Column("waits", LargeBinary),  # packed; None when there are none
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
    Column("output", LargeBinary),  # packed
    Column("error", LargeBinary),  # packed
    Column("pause_requested", Boolean, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("group_key", String),
    Column("group_limit", Integer, nullable=False),
    Column("on_new", String, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("hold", String),
    Column("slot", Integer),  # 1, or None: so that an index holds the ones alone
    CheckConstraint(f"state IN ({_RUN_STATES})", name="run_state"),
    UniqueConstraint("repository_id", "number"),
    Index("runs_by_state", "state", "n"),
    Index("runs_of_commit", "repository_id", "commit", "number"),
    _partial("runs_live", "repository_id", "number", where="ended_ms IS NULL"),
    # What may be claimed: a million sleepers without a time are in neither of these two.
    _partial("runs_due", "ready_ms", "n", where="ready_ms IS NOT NULL"),
    _partial("runs_due_of", "repository_id", "ready_ms", "n", where="ready_ms IS NOT NULL"),
    _partial("runs_leased", "worker", where="worker IS NOT NULL"),
    # Only runs that are in a group, or meet a limit, are in these.
    _partial(
        "runs_grouped",
        *("repository_id", "group_key", "hold", text("priority DESC"), "n"),
        where="group_key IS NOT NULL AND ended_ms IS NULL",
    ),
    _partial("runs_over", "repository_id", text("priority DESC"), "n", where="hold = 'limit'"),
    _partial("runs_slots", "repository_id", "ready_ms", where="slot IS NOT NULL"),
    _partial(
        "runs_urgent",
        *("repository_id", text("priority DESC"), "ready_ms", "n"),
        where="ready_ms IS NOT NULL AND priority > 0",
    ),
)

# A new run that has yet to end others of its group.
SUPERSESSIONS = Table(
    "supersessions",
    METADATA,
    _run_number("run_n", primary_key=True),
)

# What a run was created with and never changes; up to megabytes.
RUN_INPUTS = Table(
    "run_inputs",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("payload", LargeBinary, nullable=False),  # packed
    Column("event", LargeBinary, nullable=False),  # packed
)

# The journal. Only ever inserted.
ENTRIES = Table(
    "entries",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("data", LargeBinary),  # packed; None for {}
    Column("step_kind", String),
    Column("step_name", String),
    Column("occurrence", Integer),
    Column("attempt", Integer),
    sqlite_with_rowid=False,
)

OPERATIONS = Table(
    "operations",
    METADATA,
    Column("n", RowNumber, primary_key=True),
    Column("id", Id, unique=True, nullable=False),
    _run_number("run_n"),
    Column("run_id", String, nullable=False),
    Column("repository_id", Id, nullable=False),
    Column("step_kind", String, nullable=False),
    Column("step_name", String, nullable=False),
    Column("occurrence", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("spec", LargeBinary, nullable=False),  # packed
    Column("state", String, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("worker", String),
    Column("lease_until_ms", BigInteger),
    Column("ready_ms", BigInteger, nullable=False),
    Column("due_ms", BigInteger),  # ready_ms while queued, else None
    Column("stop", Boolean, nullable=False),
    Column("pool", Id, nullable=False, server_default=""),  # who may claim it
    Column("lost_worker", String),  # whose lease of it ran out before
    CheckConstraint(f"state IN ({_OPERATION_STATES})", name="operation_state"),
    Index("operations_of_run", "run_n"),
    _partial("operations_due", "pool", "due_ms", "n", where="due_ms IS NOT NULL"),
    _partial(
        "operations_due_of",
        *("pool", "repository_id", "due_ms", "n"),
        where="due_ms IS NOT NULL",
    ),
    _partial("operations_leased", "worker", where="worker IS NOT NULL"),
)

APPROVALS = Table(
    "approvals",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("step_kind", String, primary_key=True),
    Column("step_name", String, primary_key=True),
    Column("occurrence", Integer, primary_key=True, autoincrement=False),
    Column("repository_id", Id, nullable=False),
    Column("spec", LargeBinary, nullable=False),  # packed
    Column("opened_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("outcome", String),
    Column("closed_ms", BigInteger),
    _partial("approvals_open", "opened_ms", where="outcome IS NULL"),
    _partial("approvals_open_of", "repository_id", "opened_ms", where="outcome IS NULL"),
    sqlite_with_rowid=False,
)

# One person's answer to one gate.
DECISIONS = Table(
    "decisions",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("step_kind", String, primary_key=True),
    Column("step_name", String, primary_key=True),
    Column("occurrence", Integer, primary_key=True, autoincrement=False),
    Column("user_id", String, primary_key=True),
    Column("user", String, nullable=False),
    Column("decision", String, nullable=False),
    Column("comment", Text, nullable=False),
    Column("way", String, nullable=False),
    Column("form", LargeBinary, nullable=False),  # packed
    Column("at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One log of a run: how far it has got.
LOGS = Table(
    "logs",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("step", String, primary_key=True),
    Column("last", BigInteger, nullable=False),
    _zero("hot"),  # bytes of it that are rows, before compression
    _partial("logs_hot", "run_n", where=f"hot >= {LOG_HOT_BYTES}"),
    sqlite_with_rowid=False,
)

# A batch of lines, compressed.
LOG_CHUNKS = Table(
    "log_chunks",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("step", String, primary_key=True),
    Column("first", BigInteger, primary_key=True),
    Column("last", BigInteger, nullable=False),
    Column("size", Integer, nullable=False),  # of the lines, before compression
    Column("lines", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# A log that is an object, up to `last`.
SEALED_LOGS = Table(
    "sealed_logs",
    METADATA,
    _run_number("run_n", primary_key=True),
    Column("step", String, primary_key=True),
    Column("digest", String, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("index_at", BigInteger, nullable=False),  # in the object
    Column("size", BigInteger, nullable=False),  # of the object
    sqlite_with_rowid=False,
)

# An object that a run refers to, a workspace layer for one; goes with the run.
RUN_LAYERS = Table(
    "run_layers",
    METADATA,
    Column("digest", Id, primary_key=True),
    _run_number("run_n", primary_key=True),
    Index("run_layers_of_run", "run_n"),
    sqlite_with_rowid=False,
)

# A run that another one started: see ci_platform/family.py.
FAMILY = Table(
    "family",
    METADATA,
    _run_number("child_n", primary_key=True),
    _run_number("parent_n"),
    Column("step", String, nullable=False),
    Column("waits", Boolean, nullable=False),
    Column("depth", Integer, nullable=False),
    Column("due", Integer, nullable=False),
    Index("family_of_parent", "parent_n"),
    _partial("family_due", "child_n", where="due > 0"),
)

# What a command came to, for later runs; goes with its run.
MEMOS = Table(
    "memos",
    METADATA,
    Column("repository_id", Id, primary_key=True),
    Column("scope", String, primary_key=True),  # the ref whose runs may read it
    Column("key", String, primary_key=True),
    _run_number("run_n"),
    Column("step", String, nullable=False),
    Column("result", LargeBinary, nullable=False),  # packed
    _zero("used_ms"),  # when a run last took or left it
    _zero("size"),  # bytes of the objects it stands for
    Column("digest", Id, nullable=True),  # which only it refers to
    Index("memos_of_run", "run_n"),
    Index("memos_used", "repository_id", "used_ms", "size"),
    _partial("memos_digest", "digest", where="digest IS NOT NULL"),
    sqlite_with_rowid=False,
)

WORKERS = Table(
    "workers",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("host", String, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    Column("beat_ms", BigInteger, nullable=False),
    Column("labels", LargeBinary, nullable=False),  # packed
    _zero("capacity"),  # commands at once
    _no("draining"),  # it takes nothing new
    _no("drain"),  # somebody wants it to end
    Column("obstacle", String),  # why it starts no command now
)

# When a pipeline is to be started next.
SCHEDULES = Table(
    "schedules",
    METADATA,
    Column("repository_id", Id, primary_key=True),
    Column("pipeline", String, primary_key=True),
    Column("cron", String, primary_key=True),
    Column("timezone", String, primary_key=True),
    Column("next_ms", BigInteger, nullable=False),
    Index("schedules_due", "next_ms"),
)

# When a duty that one process at a time is enough for is due again.
DUTIES = Table(
    "duties",
    METADATA,
    Column("name", Id, primary_key=True),
    Column("next_ms", BigInteger, nullable=False),
)

# Where the newest state of a repository's own database is kept.
SHELVES = Table(
    "shelves",
    METADATA,
    Column("repository_id", Id, primary_key=True),
    Column("name", Id, primary_key=True),  # sql, kv
    Column("version", BigInteger, nullable=False),
    Column("object", String, nullable=False),
    sqlite_with_rowid=False,
)

NETWORK_POLICIES = Table(
    "network_policies",
    METADATA,
    Column("repository_id", Id, primary_key=True),
    Column("hosts", LargeBinary, nullable=False),  # packed
)

USERS = Table(
    "users",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", String, unique=True, nullable=False),
    Column("password_hash", String),
    Column("admin", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

ROLES = Table(
    "roles",
    METADATA,
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("repository_id", Id, primary_key=True),
    Column("role", String, nullable=False),
    sqlite_with_rowid=False,
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("digest", String, unique=True, nullable=False),
    Column("name", String, nullable=False),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), index=True),
    Column("scopes", LargeBinary, nullable=False),  # packed
    Column("repository_id", String),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("last_used_ms", BigInteger),
)

# A one-time link, by the digest of its secret. One per purpose.
LINKS = Table(
    "links",
    METADATA,
    Column("purpose", String, primary_key=True),
    Column("digest", String, unique=True, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)

HOOKS = Table(
    "hooks",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("repository_id", Id, nullable=False, index=True),
    Column("provider", String, nullable=False),
    Column("secret", LargeBinary, nullable=False),  # sealed, see cipher.py
    Column("remote_url", String),
    Column("created_ms", BigInteger, nullable=False),
)

DELIVERIES = Table(
    "hook_deliveries",
    METADATA,
    Column("hook_id", Id, ForeignKey("hooks.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String, primary_key=True),
    Column("event", String, nullable=False),
    Column("body", LargeBinary),  # until it is finished
    Column("received_ms", BigInteger, nullable=False),
    Column("due_ms", BigInteger),  # None once finished
    Column("tries", Integer, nullable=False),
    Column("outcome", String),
    Index("deliveries_received", "received_ms"),
    _partial("deliveries_due", "due_ms", where="due_ms IS NOT NULL"),
)

DESCRIPTIONS = Table(
    "descriptions",
    METADATA,
    Column("n", RowNumber, primary_key=True),
    Column("digest", String, unique=True, nullable=False),
    Column("description", LargeBinary, nullable=False),  # packed
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("n", RowNumber, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("detail", LargeBinary, nullable=False),  # packed
)
