"""What all tests share: the sandbox guest, built once and kept between test runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings

from ci_platform.config import Config
from tests.postgres import PostgresServer, postgres_server
from tests.s3 import S3, S3Server

settings.register_profile("long", max_examples=2_000)  # twenty times the default


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "always: every sandbox is dropped at every await, in all that tests start"
    parser.addoption("--hibernate", choices=["auto", "always"], default=None, help=said)


def pytest_configure(config: pytest.Config) -> None:
    """Through the environment: deployments read their settings there, in processes of theirs, too;
    what a test asks for itself stays as it is."""
    chosen = config.getoption("--hibernate")
    if chosen is not None:
        os.environ["SLUICE_HIBERNATE"] = chosen


@pytest.fixture(scope="session")
def guest_cache() -> Path:
    """Where the built guest lies. The first test that starts a sandbox builds it."""
    return Config().cache


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test process. It starts with the first test that asks for it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 of this test process. It starts with the first test that asks for it."""
    with closing(S3Server()) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket of the test's own, which this process and its children can reach."""
    bucket = s3_server.bucket()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """`SLUICE_DATABASE_URL` of a new deployment: none for SQLite, else a database of its own."""
    if request.param == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url
