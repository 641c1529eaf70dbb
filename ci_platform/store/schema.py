"""The schema's creation, its version, and its way from an older version to this program's.

A new database gets the tables as they are, in one transaction. An older one is migrated only when
the caller says so. Any other is refused with what to do about it. Called by sql_store.py.
"""

from __future__ import annotations

import importlib
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, MetaData, inspect, select, text

from ci_platform.errors import StoreUnavailable
from ci_platform.store.database import Database
from ci_platform.store.tables import METADATA, RUNS, SCHEMA, SCHEMA_VERSION

_LOCK = 0x511CE  # of PostgreSQL's advisory locks
_log = logging.getLogger(__name__)
_HALF = "of a migration that was cut off"


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did."""

    before: str
    after: str
    backup: Path | None  # the SQLite file as it was


def prepare(database: Database, beside: Sequence[MetaData], *, migrate: bool) -> None:
    """Create the tables of a new database, these and those `beside` them, or check that the schema
    is this program's. `migrate` moves an older one on SQLite, which is this program's alone.

    Raises StoreUnavailable when it is another.
    """
    with database.first_turn():
        found = database.read(_version)
    if found is None:
        found = database.write(partial(_create, beside=beside))
    if migrate and database.sqlite and _older(found):
        upgrade(database)
        found = database.read(_version)
    if found != SCHEMA_VERSION:
        raise StoreUnavailable(_refusal(found or _HALF))


def upgrade(database: Database) -> Migrated | None:
    """Move an older schema to this program's, after a copy of a SQLite file. None: it is there.

    All of it happens in one transaction. Raises StoreUnavailable if it cannot be done.
    """
    found = database.read(_version)
    if found is None or found == SCHEMA_VERSION:
        return None
    if not _older(found):
        raise StoreUnavailable(_refusal(found))
    backup = _copy(database, found) if database.sqlite else None
    before = database.write(_upgrade)
    _log.info("migrated the database from %s to %s; a copy: %s", before, SCHEMA_VERSION, backup)
    return Migrated(before, SCHEMA_VERSION, backup)


def _version(connection: Connection) -> str | None:
    """None for a database without our tables."""
    looked = inspect(connection)
    if not looked.has_table(SCHEMA.name):
        return _HALF if looked.has_table(RUNS.name) else None
    found = connection.execute(select(SCHEMA.c.version_num)).scalars().all()
    return found[0] if len(found) == 1 else _HALF


def _older(version: str | None) -> bool:
    return version is not None and version.isdecimal() and int(version) < int(SCHEMA_VERSION)


def _refusal(found: str) -> str:
    if _older(found):
        what = "stop all processes and run `sluice migrate`"
    elif found.isdecimal():
        what = "it is a newer one: install the version of Sluice that wrote it, or a later one"
    else:
        what = "restore the database from a backup"
    return f"the database has the schema {found}, this program needs {SCHEMA_VERSION}: {what}"


def _create(connection: Connection, *, beside: Sequence[MetaData]) -> str:
    """Create all tables, unless another process just did."""
    _lock(connection)
    found = _version(connection)
    if found is None:
        for metadata in (METADATA, *beside):
            metadata.create_all(connection, checkfirst=False)
        connection.execute(SCHEMA.insert(), {"version_num": SCHEMA_VERSION})
        found = SCHEMA_VERSION
    return found


def _upgrade(connection: Connection) -> str:
    """Returns the version found, which another process may have moved meanwhile."""
    _lock(connection)
    found = _version(connection)
    if found is not None and _older(found):
        # Loaded here and nowhere else: see the package.
        migrations = importlib.import_module("ci_platform.store.migrations")
        migrations.upgrade(connection, SCHEMA_VERSION)
    return str(found)


def _lock(connection: Connection) -> None:
    """One at a time. On SQLite the transaction itself sees to that."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text("SET LOCAL statement_timeout = 0"))


def _copy(database: Database, version: str) -> Path:
    """Copy a SQLite database beside itself; complete, or not there."""
    assert database.url.database is not None
    path = Path(database.url.database)
    target = path.with_name(f"{path.name}.{version}.backup")
    unfinished = target.with_suffix(".part")
    try:
        unfinished.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(unfinished)) as copy:
            source.backup(copy)
        unfinished.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable(
            f"the database was not migrated, since it cannot be copied to {target}: {error}"
        ) from error
    return target
