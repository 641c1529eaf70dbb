"""The stores that one suite runs against: in memory, on SQLite, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from ci_platform.ports import Store
from ci_platform.store import SqlStore, open_store
from ci_platform.store.tables import METADATA
from ci_platform.testing.store import InMemoryStore
from tests.contract.store_values import FakeClock
from tests.postgres import PostgresServer

KEY = bytes(range(32))
OpenStore = Callable[[], SqlStore]


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    return postgres.url


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sluice.db'}"


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> str:
    """The server's database, with the tables but without a row."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ours = {name for (name,) in found} & (set(METADATA.tables) - {"alembic_version"})
        if ours:
            connection.execute(f"TRUNCATE {', '.join(sorted(ours))} RESTART IDENTITY CASCADE")
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    name = "sqlite_url" if request.param == "sqlite" else "empty_postgres_url"
    url = request.getfixturevalue(name)
    assert isinstance(url, str)
    return url


@contextmanager
def opener(url: str, clock: FakeClock) -> Iterator[OpenStore]:
    """Opens the same database as often as it is called, as separate processes would."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(open_store(url, clock=clock, key=KEY)))


@pytest.fixture
def open_sql_store(database_url: str, clock: FakeClock) -> Iterator[OpenStore]:
    with opener(database_url, clock) as open_another:
        yield open_another


@pytest.fixture
def open_sqlite(sqlite_url: str, clock: FakeClock) -> Iterator[OpenStore]:
    with opener(sqlite_url, clock) as open_another:
        yield open_another


@pytest.fixture
def open_postgres(empty_postgres_url: str, clock: FakeClock) -> Iterator[OpenStore]:
    with opener(empty_postgres_url, clock) as open_another:
        yield open_another


@pytest.fixture
def sql_store(open_sql_store: OpenStore) -> SqlStore:
    return open_sql_store()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Store]:
    opened: Store
    if request.param == "memory":
        opened = InMemoryStore(clock)
    else:
        name = "sqlite_url" if request.param == "sqlite" else "empty_postgres_url"
        opened = open_store(request.getfixturevalue(name), clock=clock, key=KEY)
    yield opened
    opened.close()
