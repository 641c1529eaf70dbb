"""The clock of a deployment: one for all of its processes."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg
import pytest
from sqlalchemy.engine import make_url

from ci_platform.errors import StoreUnavailable
from ci_platform.store import open_store
from ci_platform.store import server_clock as clock_module
from ci_platform.store.server_clock import ServerClock
from tests.contract.conftest import KEY

NEAR_MS = 5_000  # of a busy machine
NOW = "ci_platform.store.server_clock.time.time_ns"


def server_ms(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp()) * 1000").fetchone()
    assert row is not None
    return int(row[0])


def test_on_sqlite_it_is_the_machines(sqlite_url: str) -> None:
    with closing(open_store(sqlite_url, key=KEY)) as store:
        assert abs(store.clock.now_ms() - time.time() * 1000) < NEAR_MS


def test_on_postgresql_it_is_the_servers(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns
    monkeypatch.setattr(NOW, lambda: real() - 3_600 * 10**9)
    with closing(open_store(empty_postgres_url, key=KEY)) as store:
        assert abs(store.clock.now_ms() - server_ms(empty_postgres_url)) < NEAR_MS


def test_it_follows_when_the_machines_clock_is_set(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ServerClock(make_url(empty_postgres_url))
    real = time.time_ns
    monkeypatch.setattr(NOW, lambda: real() + 3_600 * 10**9)
    assert clock.now_ms() - server_ms(empty_postgres_url) > 3_500_000
    monkeypatch.setattr(clock_module, "MEASURE_S", -1.0)
    assert abs(clock.now_ms() - server_ms(empty_postgres_url)) < NEAR_MS


def test_without_the_server_the_last_difference_goes_on(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ServerClock(make_url(empty_postgres_url))

    def gone(*_: object, **__: object) -> None:
        raise psycopg.OperationalError("no server")

    monkeypatch.setattr(clock_module, "MEASURE_S", -1.0)
    monkeypatch.setattr("ci_platform.store.server_clock.psycopg.connect", gone)
    assert abs(clock.now_ms() - time.time() * 1000) < NEAR_MS


def test_no_server_at_all_is_said() -> None:
    with pytest.raises(StoreUnavailable, match="connection"):
        open_store("postgresql://ann@127.0.0.1:1/none", key=KEY)
