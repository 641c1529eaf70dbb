"""The databases that a benchmark runs on: the embedded one, and a real PostgreSQL of its own.

PostgreSQL keeps its defaults: every commit is synced, as the embedded database's is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from tests.postgres import UNSYNCED, postgres_server

EMBEDDED, SCALED = "SQLite", "PostgreSQL"


@contextlib.contextmanager
def database(kind: str) -> Iterator[str | None]:
    """Yields the URL of a new database, None for the embedded one."""
    if kind == EMBEDDED:
        yield None
        return
    with postgres_server() as server:
        with psycopg.connect(server.url, autocommit=True) as admin:
            for setting in UNSYNCED:
                admin.execute(f"ALTER SYSTEM RESET {setting.partition(' ')[0]}")
            admin.execute("SELECT pg_reload_conf()")
        with server.database() as url:
            yield url
