"""The store: every table of the platform, on SQLite or PostgreSQL, behind `ports.Store`.

    store = open_store("sqlite:////data/sluice.db", bell_dir=data / "bells", key=key)
    store = open_store("postgresql://user@host/name", key=key)

`key` seals secrets; `load_or_create_key(data / "secret.key")` keeps one. Nothing outside sees a
row, a connection or a statement, apart from the git store, which shares `SqlStore.engine`.
"""

from ci_platform.store.cipher import load_or_create_key
from ci_platform.store.clock import SystemClock
from ci_platform.store.sql_store import SqlStore, open_store

__all__ = ["SqlStore", "SystemClock", "load_or_create_key", "open_store"]
