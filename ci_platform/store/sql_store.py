"""The whole store on one database. Opened by app, by tests, by nobody else."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import ObjectStore
from sqlalchemy import Engine, MetaData

from ci_platform.ports import Clock
from ci_platform.scheduling import RunLimits
from ci_platform.shell import MemoLimits
from ci_platform.store import schema
from ci_platform.store.approvals import SqlApprovalStore
from ci_platform.store.audit import SqlAuditStore
from ci_platform.store.bell import Bells, Listener, Wire
from ci_platform.store.cipher import Cipher
from ci_platform.store.clock import SystemClock
from ci_platform.store.database import Database
from ci_platform.store.datagrams import DatagramWire
from ci_platform.store.descriptions import SqlDescriptionStore
from ci_platform.store.duties import SqlDutyStore
from ci_platform.store.family import SqlFamilyStore
from ci_platform.store.hooks import SqlHookStore
from ci_platform.store.identity import SqlIdentityStore
from ci_platform.store.logs import SqlLogStore
from ci_platform.store.memos import SqlMemoStore
from ci_platform.store.mirrors import SqlMirrorStore
from ci_platform.store.networks import SqlNetworkPolicies
from ci_platform.store.notices import SqlNoticeStore
from ci_platform.store.operations import SqlOperationStore
from ci_platform.store.runs import SqlRunStore
from ci_platform.store.schedules import SqlScheduleStore
from ci_platform.store.shelves import SqlShelfStore
from ci_platform.store.workers import SqlWorkerStore

if TYPE_CHECKING:  # those on SQLite need not wait for PostgreSQL's driver
    from ci_platform.store.notifications import NotifyWire
    from ci_platform.store.server_clock import ServerClock


class SqlStore:
    """`ports.Store`. `clock` and `engine` are for those that must share them."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        bell_dir: Path | None,
        key: bytes,
        limits: RunLimits,
        objects: ObjectStore | None = None,
        memo_limits: MemoLimits | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._bells = Bells(lambda name: _wire(database, bell_dir, name))
        operations = SqlOperationStore(
            database, clock, ring=self._bells.ring, tell=self._bells.tell
        )
        self._operations = operations
        self._runs = SqlRunStore(database, clock, operations, self._bells, limits=limits)
        self._approvals = SqlApprovalStore(database)
        self._family = SqlFamilyStore(database)
        self._memos = SqlMemoStore(database, clock, memo_limits or MemoLimits())
        self._logs = SqlLogStore(database, self._bells.tell, objects)
        self._identity = SqlIdentityStore(database, clock)
        self._hooks = SqlHookStore(database, Cipher(key))
        self._descriptions = SqlDescriptionStore(database)
        self._audit = SqlAuditStore(database)
        self._workers = SqlWorkerStore(database)
        self._duties = SqlDutyStore(database, clock)
        self._schedules = SqlScheduleStore(database)
        self._shelves = SqlShelfStore(database)
        self._networks = SqlNetworkPolicies(database)
        self._mirrors = SqlMirrorStore(database, Cipher(key))
        self._notices = SqlNoticeStore(database, Cipher(key))

    @property
    def runs(self) -> SqlRunStore:
        return self._runs

    @property
    def operations(self) -> SqlOperationStore:
        return self._operations

    @property
    def approvals(self) -> SqlApprovalStore:
        return self._approvals

    @property
    def logs(self) -> SqlLogStore:
        return self._logs

    @property
    def family(self) -> SqlFamilyStore:
        return self._family

    @property
    def memos(self) -> SqlMemoStore:
        return self._memos

    @property
    def identity(self) -> SqlIdentityStore:
        return self._identity

    @property
    def hooks(self) -> SqlHookStore:
        return self._hooks

    @property
    def descriptions(self) -> SqlDescriptionStore:
        return self._descriptions

    @property
    def audit(self) -> SqlAuditStore:
        return self._audit

    @property
    def workers(self) -> SqlWorkerStore:
        return self._workers

    @property
    def schedules(self) -> SqlScheduleStore:
        return self._schedules

    @property
    def duties(self) -> SqlDutyStore:
        return self._duties

    @property
    def shelves(self) -> SqlShelfStore:
        return self._shelves

    @property
    def networks(self) -> SqlNetworkPolicies:
        return self._networks

    @property
    def mirrors(self) -> SqlMirrorStore:
        return self._mirrors

    @property
    def notices(self) -> SqlNoticeStore:
        return self._notices

    @property
    def clock(self) -> Clock:
        """The clock that all processes of the deployment agree on."""
        return self._clock

    @property
    def engine(self) -> Engine:
        """For the git store, whose tables live in the same database."""
        return self._database.engine

    def bell(self, *, work: bool = False) -> Listener:
        return self._bells.listener(work=work)

    def close(self) -> None:
        self._bells.close()
        self._database.close()


def _clock(database: Database) -> Clock:
    if database.sqlite:
        return SystemClock()
    server_clock = importlib.import_module("ci_platform.store.server_clock")
    make: type[ServerClock] = server_clock.ServerClock
    return make(database.url)


def _wire(database: Database, bell_dir: Path | None, name: str) -> Wire:
    if not database.sqlite:
        notifications = importlib.import_module("ci_platform.store.notifications")
        make: type[NotifyWire] = notifications.NotifyWire
        return make(database.url, f"sluice_{name}")
    assert database.url.database is not None
    directory = bell_dir or Path(database.url.database).with_suffix(".bells")
    return DatagramWire(directory / name)


def open_store(
    database_url: str,
    *,
    clock: Clock | None = None,
    bell_dir: Path | None = None,
    key: bytes,
    limits: RunLimits | None = None,
    objects: ObjectStore | None = None,
    beside: Sequence[MetaData] = (),
    migrate: bool = False,
    memo_limits: MemoLimits | None = None,
) -> SqlStore:
    """Open a deployment's store, creating the tables of a new database, and those `beside` them.

    `clock` None is the deployment's own: this machine's on SQLite, the server's on PostgreSQL;
    give `SqlStore.clock` to everything else then. `bell_dir` (SQLite only) is where processes
    ring each other; None: a directory beside the database. `objects` is where logs that have
    ended go; None: they stay in the database. `memo_limits`: what a repository may keep of results
    and caches. `migrate` lets an older schema of a SQLite file be
    moved to this program's: say so only where no older program may be using it. Raises
    InvalidRequest for a bad URL or key, StoreUnavailable if the database cannot be used or has
    another version's schema.
    """
    database = Database(database_url)
    try:
        schema.prepare(database, beside, migrate=migrate)
        if clock is None:
            clock = _clock(database)
        return SqlStore(
            database,
            clock=clock,
            bell_dir=bell_dir,
            key=key,
            limits=limits or RunLimits(),
            objects=objects,
            memo_limits=memo_limits,
        )
    except BaseException:
        database.close()
        raise


def migrate_store(database_url: str) -> schema.Migrated | None:
    """Move an older schema to this program's; None if there is nothing to do. No other process may
    use the database meanwhile. Raises InvalidRequest for a bad URL, StoreUnavailable."""
    database = Database(database_url)
    try:
        return schema.upgrade(database)
    finally:
        database.close()
