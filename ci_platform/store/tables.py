"""The tables, as SQLModel classes; statements use their SQLAlchemy tables below (`RUNS`, ...).

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
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from ci_platform.model import OperationState, RunState

SCHEMA_VERSION = "0012"
LOG_HOT_BYTES = 64 << 10  # of rows: a log that has fewer stays rows when its step has ended

# Ids are compared byte by byte: their order must not depend on the database's locale.
Id = String().with_variant(String(collation="C"), "postgresql")
# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

_RUN_STATES = ", ".join(f"'{state}'" for state in RunState)
_OPERATION_STATES = ", ".join(f"'{state}'" for state in OperationState)
_CLUSTERED = {"sqlite_with_rowid": False}


class StoreTable(SQLModel, registry=registry(metadata=MetaData())):
    model_config = {"defer_build": True}  # no row is ever an object: no validators


def _partial(name: str, *columns: str | TextClause, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


def _run_number(*, primary_key: bool = False) -> Column[int]:
    """A reference to a run, whose deletion takes the row with it."""
    target = ForeignKey("runs.n", ondelete="CASCADE")
    return Column(RowNumber, target, primary_key=primary_key, nullable=False, autoincrement=False)


def _zero() -> Column[int]:
    return Column(BigInteger, nullable=False, server_default="0")


def _no() -> Column[bool]:
    return Column(Boolean, nullable=False, server_default=false())


class SchemaRow(StoreTable, table=True):
    """Which schema this database has; the table and column that Alembic looks at."""

    __tablename__ = "alembic_version"

    version_num: str = Field(primary_key=True, max_length=32)


class RunCounterRow(StoreTable, table=True):
    """The last number given to a run of a repository. It outlives the runs."""

    __tablename__ = "run_counters"
    __table_args__ = _CLUSTERED

    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    last_number: int = Field(sa_type=BigInteger)


class RunRow(StoreTable, table=True):
    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(f"state IN ({_RUN_STATES})", name="run_state"),
        UniqueConstraint("repository_id", "number"),
        Index("runs_by_state", "state", "n"),
        Index("runs_of_commit", "commit_key", "number"),
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

    n: int | None = Field(default=None, sa_column=Column(RowNumber, primary_key=True))
    id: str = Field(sa_column=Column(Id, unique=True, nullable=False))
    number: int = Field(sa_type=BigInteger)
    repository_id: str = Field(sa_column=Column(Id, nullable=False))
    pipeline: str
    ref: str
    commit: str
    resume: str
    trigger: str
    actor: str
    actor_id: str | None
    trusted: bool
    created_ms: int = Field(sa_type=BigInteger)
    timeout_ms: int | None = Field(sa_type=BigInteger)
    state: str
    reason: str | None
    last_seq: int
    fence: int
    worker: str | None
    lease_until_ms: int | None = Field(sa_type=BigInteger)
    # Only while the run may be claimed: None while leased, paused or ended.
    ready_ms: int | None = Field(sa_type=BigInteger)
    waits: bytes | None = Field(sa_type=LargeBinary)  # packed; None when there are none
    started_ms: int | None = Field(sa_type=BigInteger)
    ended_ms: int | None = Field(sa_type=BigInteger)
    output: bytes | None = Field(sa_type=LargeBinary)  # packed
    error: bytes | None = Field(sa_type=LargeBinary)  # packed
    pause_requested: bool
    cancel_requested: bool
    group_key: str | None
    group_limit: int
    on_new: str
    priority: int
    hold: str | None
    slot: int | None  # 1, or None: so that an index holds the ones alone
    # A checksum of repository and commit (codec.py): what an index can hold in place of both.
    commit_key: int = Field(sa_column=Column(Integer, nullable=False, server_default="0"))


class SupersessionRow(StoreTable, table=True):
    """A new run that has yet to end others of its group."""

    __tablename__ = "supersessions"

    run_n: int = Field(sa_column=_run_number(primary_key=True))


class RunInputRow(StoreTable, table=True):
    """What a run was created with and never changes; up to megabytes."""

    __tablename__ = "run_inputs"

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    payload: bytes = Field(sa_type=LargeBinary)  # packed
    event: bytes = Field(sa_type=LargeBinary)  # packed


class EntryRow(StoreTable, table=True):
    """The journal. Only ever inserted."""

    __tablename__ = "entries"
    __table_args__ = _CLUSTERED

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    seq: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    kind: str
    at_ms: int = Field(sa_type=BigInteger)
    data: bytes | None = Field(sa_type=LargeBinary)  # packed; None for {}
    step_kind: str | None
    step_name: str | None
    occurrence: int | None
    attempt: int | None


class OperationRow(StoreTable, table=True):
    __tablename__ = "operations"
    __table_args__ = (
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

    n: int | None = Field(default=None, sa_column=Column(RowNumber, primary_key=True))
    id: str = Field(sa_column=Column(Id, unique=True, nullable=False))
    run_n: int = Field(sa_column=_run_number())
    run_id: str
    repository_id: str = Field(sa_column=Column(Id, nullable=False))
    step_kind: str
    step_name: str
    occurrence: int
    attempt: int
    spec: bytes = Field(sa_type=LargeBinary)  # packed
    state: str
    fence: int
    worker: str | None
    lease_until_ms: int | None = Field(sa_type=BigInteger)
    ready_ms: int = Field(sa_type=BigInteger)
    due_ms: int | None = Field(sa_type=BigInteger)  # ready_ms while queued, else None
    stop: bool
    pool: str = Field(sa_column=Column(Id, nullable=False, server_default=""))  # who may claim it
    lost_worker: str | None  # whose lease of it ran out before


class ApprovalRow(StoreTable, table=True):
    __tablename__ = "approvals"
    __table_args__ = (
        _partial("approvals_open", "opened_ms", where="outcome IS NULL"),
        _partial("approvals_open_of", "repository_id", "opened_ms", where="outcome IS NULL"),
        _CLUSTERED,
    )

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    step_kind: str = Field(primary_key=True)
    step_name: str = Field(primary_key=True)
    occurrence: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    repository_id: str = Field(sa_column=Column(Id, nullable=False))
    spec: bytes = Field(sa_type=LargeBinary)  # packed
    opened_ms: int = Field(sa_type=BigInteger)
    expires_ms: int | None = Field(sa_type=BigInteger)
    outcome: str | None
    closed_ms: int | None = Field(sa_type=BigInteger)


class DecisionRow(StoreTable, table=True):
    """One person's answer to one gate."""

    __tablename__ = "decisions"
    __table_args__ = _CLUSTERED

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    step_kind: str = Field(primary_key=True)
    step_name: str = Field(primary_key=True)
    occurrence: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    user_id: str = Field(primary_key=True)
    user: str
    decision: str
    comment: str = Field(sa_type=Text)
    way: str
    form: bytes = Field(sa_type=LargeBinary)  # packed
    at_ms: int = Field(sa_type=BigInteger)


class LogRow(StoreTable, table=True):
    """One log of a run: how far it has got."""

    __tablename__ = "logs"
    __table_args__ = (
        _partial("logs_hot", "run_n", where=f"hot >= {LOG_HOT_BYTES}"),
        _CLUSTERED,
    )

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    step: str = Field(primary_key=True)
    last: int = Field(sa_type=BigInteger)
    hot: int = Field(sa_column=_zero())  # bytes of it that are rows, before compression


class LogChunkRow(StoreTable, table=True):
    """A batch of lines, compressed."""

    __tablename__ = "log_chunks"
    __table_args__ = _CLUSTERED

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    step: str = Field(primary_key=True)
    first: int = Field(primary_key=True, sa_type=BigInteger)
    last: int = Field(sa_type=BigInteger)
    size: int  # of the lines, before compression
    lines: bytes = Field(sa_type=LargeBinary)


class SealedLogRow(StoreTable, table=True):
    """A log that is an object, up to `last`."""

    __tablename__ = "sealed_logs"
    __table_args__ = _CLUSTERED

    run_n: int = Field(sa_column=_run_number(primary_key=True))
    step: str = Field(primary_key=True)
    digest: str
    last: int = Field(sa_type=BigInteger)
    index_at: int = Field(sa_type=BigInteger)  # in the object
    size: int = Field(sa_type=BigInteger)  # of the object


class RunLayerRow(StoreTable, table=True):
    """An object that a run refers to, a workspace layer for one; goes with the run."""

    __tablename__ = "run_layers"
    __table_args__ = (Index("run_layers_of_run", "run_n"), _CLUSTERED)

    digest: str = Field(sa_column=Column(Id, primary_key=True))
    run_n: int = Field(sa_column=_run_number(primary_key=True))


class FamilyRow(StoreTable, table=True):
    """A run that another one started: see ci_platform/family.py."""

    __tablename__ = "family"
    __table_args__ = (
        Index("family_of_parent", "parent_n"),
        _partial("family_due", "child_n", where="due > 0"),
    )

    child_n: int = Field(sa_column=_run_number(primary_key=True))
    parent_n: int = Field(sa_column=_run_number())
    step: str
    waits: bool
    depth: int
    due: int


class MemoRow(StoreTable, table=True):
    """What a command came to, for later runs; goes with its run."""

    __tablename__ = "memos"
    __table_args__ = (
        Index("memos_of_run", "run_n"),
        Index("memos_used", "repository_id", "used_ms", "size"),
        _partial("memos_digest", "digest", where="digest IS NOT NULL"),
        _CLUSTERED,
    )

    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    scope: str = Field(primary_key=True)  # the ref whose runs may read it
    key: str = Field(primary_key=True)
    run_n: int = Field(sa_column=_run_number())
    step: str
    result: bytes = Field(sa_type=LargeBinary)  # packed
    used_ms: int = Field(sa_column=_zero())  # when a run last took or left it
    size: int = Field(sa_column=_zero())  # bytes of the objects it stands for
    digest: str | None = Field(sa_column=Column(Id, nullable=True))  # which only it refers to


class WorkerRow(StoreTable, table=True):
    __tablename__ = "workers"

    id: str = Field(sa_column=Column(Id, primary_key=True))
    host: str
    pid: int = Field(sa_type=BigInteger)
    started_ms: int = Field(sa_type=BigInteger)
    seen_ms: int = Field(sa_type=BigInteger)
    beat_ms: int = Field(sa_type=BigInteger)
    labels: bytes = Field(sa_type=LargeBinary)  # packed
    capacity: int = Field(sa_column=_zero())  # commands at once
    draining: bool = Field(sa_column=_no())  # it takes nothing new
    drain: bool = Field(sa_column=_no())  # somebody wants it to end
    obstacle: str | None  # why it starts no command now


class ScheduleRow(StoreTable, table=True):
    """When a pipeline is to be started next."""

    __tablename__ = "schedules"
    __table_args__ = (Index("schedules_due", "next_ms"),)

    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    pipeline: str = Field(primary_key=True)
    cron: str = Field(primary_key=True)
    timezone: str = Field(primary_key=True)
    next_ms: int = Field(sa_type=BigInteger)


class DutyRow(StoreTable, table=True):
    """When a duty that one process at a time is enough for is due again."""

    __tablename__ = "duties"

    name: str = Field(sa_column=Column(Id, primary_key=True))
    next_ms: int = Field(sa_type=BigInteger)


class ShelfRow(StoreTable, table=True):
    """Where the newest state of a repository's own database is kept."""

    __tablename__ = "shelves"
    __table_args__ = (_CLUSTERED,)

    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    name: str = Field(sa_column=Column(Id, primary_key=True))  # sql, kv
    version: int = Field(sa_type=BigInteger)
    object: str


class NetworkPolicyRow(StoreTable, table=True):
    __tablename__ = "network_policies"

    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    hosts: bytes = Field(sa_type=LargeBinary)  # packed


class UserRow(StoreTable, table=True):
    __tablename__ = "users"

    id: str = Field(sa_column=Column(Id, primary_key=True))
    name: str = Field(unique=True)
    password_hash: str | None
    admin: bool
    created_ms: int = Field(sa_type=BigInteger)


class RoleRow(StoreTable, table=True):
    __tablename__ = "roles"
    __table_args__ = _CLUSTERED

    user_id: str = Field(
        sa_column=Column(Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    )
    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    role: str


class TokenRow(StoreTable, table=True):
    __tablename__ = "tokens"

    id: str = Field(sa_column=Column(Id, primary_key=True))
    digest: str = Field(unique=True)
    name: str
    user_id: str | None = Field(
        sa_column=Column(Id, ForeignKey("users.id", ondelete="CASCADE"), index=True)
    )
    scopes: bytes = Field(sa_type=LargeBinary)  # packed
    repository_id: str | None
    created_ms: int = Field(sa_type=BigInteger)
    expires_ms: int | None = Field(sa_type=BigInteger)
    last_used_ms: int | None = Field(sa_type=BigInteger)


class LinkRow(StoreTable, table=True):
    """A one-time link, by the digest of its secret. One per purpose."""

    __tablename__ = "links"

    purpose: str = Field(primary_key=True)
    digest: str = Field(unique=True)
    expires_ms: int = Field(sa_type=BigInteger)


class HookRow(StoreTable, table=True):
    __tablename__ = "hooks"

    id: str = Field(sa_column=Column(Id, primary_key=True))
    repository_id: str = Field(sa_column=Column(Id, nullable=False, index=True))
    provider: str
    secret: bytes = Field(sa_type=LargeBinary)  # sealed, see cipher.py
    remote_url: str | None
    created_ms: int = Field(sa_type=BigInteger)


class DeliveryRow(StoreTable, table=True):
    __tablename__ = "hook_deliveries"
    __table_args__ = (
        Index("deliveries_received", "received_ms"),
        _partial("deliveries_due", "due_ms", where="due_ms IS NOT NULL"),
    )

    hook_id: str = Field(
        sa_column=Column(Id, ForeignKey("hooks.id", ondelete="CASCADE"), primary_key=True)
    )
    id: str = Field(primary_key=True)
    event: str
    body: bytes | None = Field(sa_type=LargeBinary)  # until it is finished
    received_ms: int = Field(sa_type=BigInteger)
    due_ms: int | None = Field(sa_type=BigInteger)  # None once finished
    tries: int
    outcome: str | None


class DescriptionRow(StoreTable, table=True):
    __tablename__ = "descriptions"

    n: int | None = Field(default=None, sa_column=Column(RowNumber, primary_key=True))
    digest: str = Field(unique=True)
    description: bytes = Field(sa_type=LargeBinary)  # packed


class AuditRow(StoreTable, table=True):
    __tablename__ = "audit"

    n: int | None = Field(default=None, sa_column=Column(RowNumber, primary_key=True))
    at_ms: int = Field(sa_type=BigInteger)
    actor: str
    action: str
    subject: str
    detail: bytes = Field(sa_type=LargeBinary)  # packed
    # Of a note that was made of many at once, in place of `subject`: packed.
    subjects: bytes | None = Field(sa_type=LargeBinary)


METADATA = StoreTable.metadata


def _table(name: str) -> Table:
    return METADATA.tables[name]


SCHEMA = _table("alembic_version")
RUN_COUNTERS = _table("run_counters")
RUNS = _table("runs")
RUN_INPUTS = _table("run_inputs")
ENTRIES = _table("entries")
OPERATIONS = _table("operations")
APPROVALS = _table("approvals")
DECISIONS = _table("decisions")
LOGS = _table("logs")
LOG_CHUNKS = _table("log_chunks")
USERS = _table("users")
ROLES = _table("roles")
TOKENS = _table("tokens")
LINKS = _table("links")
HOOKS = _table("hooks")
DELIVERIES = _table("hook_deliveries")
DESCRIPTIONS = _table("descriptions")
AUDIT = _table("audit")
RUN_LAYERS = _table("run_layers")
SUPERSESSIONS = _table("supersessions")
FAMILY = _table("family")
MEMOS = _table("memos")
SEALED_LOGS = _table("sealed_logs")
WORKERS = _table("workers")
DUTIES = _table("duties")
SCHEDULES = _table("schedules")
SHELVES = _table("shelves")
NETWORK_POLICIES = _table("network_policies")
