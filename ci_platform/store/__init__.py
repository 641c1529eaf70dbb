"""The store: every table of the platform, on SQLite or PostgreSQL, behind `ports.Store`.

    store = open_store("sqlite:////data/sluice.db", key=key)
    store = open_store("postgresql://user@host/name", key=key)

`key` (32 bytes) seals secrets. Nothing outside sees a row, a connection or a statement, apart from
the git store, which shares `SqlStore.engine`.
"""

from ci_platform.store.clock import SystemClock
from ci_platform.store.database import sqlite_url
from ci_platform.store.schema import Migrated
from ci_platform.store.sql_store import SqlStore, migrate_store, open_store

__all__ = ["Migrated", "SqlStore", "SystemClock", "migrate_store", "open_store", "sqlite_url"]
