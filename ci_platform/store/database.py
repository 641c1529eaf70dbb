"""The database connection: opened by URL, SQLite or PostgreSQL, the same from outside.

Owns pragmas, transactions, and the translation of driver errors into ours. Knows no table. Used by
every module of the store; the git store shares `Database.engine`.
"""

from __future__ import annotations

import select as select_module
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from sqlite3 import SQLITE_FULL
from sqlite3 import Connection as SqliteConnection
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InvalidatePoolError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ci_platform.errors import Conflict, InvalidRequest, StoreFull, StoreUnavailable
from ci_platform.store import direct
from ci_platform.store.turn import Turn

if TYPE_CHECKING:  # SQLAlchemy loads it where the database is one of its
    import psycopg

CONNECTIONS_KEPT = 8  # of one process; each is a file handle or a server process
SQLITE_CONNECTIONS_MAX = 48  # beyond the web server's threads, so that none of them waits
POSTGRES_CONNECTIONS_MAX = 16  # of one process, of the 100 that a server has for all of them
POOL_SECONDS = 30  # how long a thread waits for a connection that others use
BUSY_SECONDS = 15  # how long a writer of SQLite waits for the writers before it
CONNECT_SECONDS = 10
STATEMENT_SECONDS = 60  # a statement of PostgreSQL that takes longer is ended
TRIES_MAX = 4  # after a deadlock, or a connection that broke before the commit
CACHE_KIB = 512  # of pages, of each connection; what another process commits empties it anyway
WAL_BYTES_KEPT = 4 << 20  # what the write-ahead file shrinks to after a burst
OWN = "sluice_own"  # marks connections that read outside transactions, and write at once in them
_DISK_FULL = "53100"  # of PostgreSQL
_RETRIED_STATES = frozenset({"40001", "40P01"})  # serialization failure, deadlock

T = TypeVar("T")


class Database:
    """One deployment's database. Safe to use from any thread; `close` ends its connections.

    `engine` begins transactions in the ordinary, deferred way. On SQLite, whoever reads before
    writing in one must take the write lock first, as `write` does.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.sqlite else _postgres_engine(self.url)
        mode = {OWN: True} if self.sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._reader = self.engine.execution_options(**mode)
        self._turn = Turn(_beside(self.url, ".turn")) if self.sqlite else None
        self._kept: deque[Connection] = deque()  # to the SQLite file, in nobody's hands
        self._closed = False

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads; each statement sees what is committed when it starts. It
        is run again on another connection when the server has ended this one.

        Raises StoreUnavailable.
        """
        with _translated():
            for _ in range(TRIES_MAX - 1):
                try:
                    return self._read_once(work)
                except DBAPIError as error:
                    if not _may_retry(error):
                        raise
            return self._read_once(work)

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        if not self.sqlite:
            with self._reader.connect() as connection:
                return work(connection)
        with self._borrowed() as connection:
            result = work(connection)
            connection.rollback()  # of nothing, but SQLAlchemy has begun something
            return result

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """A connection to the SQLite file, of those that are kept. Getting one from the pool and
        giving it back costs as much as a few statements."""
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = self._reader.connect()
        try:
            yield connection
        except BaseException:
            connection.invalidate()  # a transaction may be open, and ends with it
            connection.close()
            raise
        if len(self._kept) < CONNECTIONS_KEPT and not self._closed:
            self._kept.append(connection)
        else:
            connection.close()

    def write(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Run `work` in one transaction and commit it. It may be run again after a deadlock.

        Not `durable`: for what means nothing without the processes of this machine, as a lease. A
        power cut may take it back, unless anything durable was written after it. PostgreSQL, which
        other machines outlive, makes all durable.

        Raises Conflict when a constraint refuses it, InvalidRequest for a value the database
        cannot hold, StoreUnavailable for everything else.
        """
        with _translated():
            for _ in range(TRIES_MAX - 1):
                try:
                    return self._write_once(work, durable)
                except DBAPIError as error:
                    if not _may_retry(error):
                        raise
            return self._write_once(work, durable)

    def _write_once(self, work: Callable[[Connection], T], durable: bool) -> T:
        if self._turn is None:
            with self.engine.connect() as connection:
                return _committed(connection, work)
        with self._turn, self._borrowed() as connection:
            if durable:
                return _committed_here(connection, work)
            direct.execute(connection, "PRAGMA synchronous = NORMAL")
            result = _committed_here(connection, work)
            direct.execute(connection, "PRAGMA synchronous = FULL")
            return result

    def first_turn(self) -> AbstractContextManager[None]:
        """The first connection may find a new file and make it a WAL one, which must not be done
        twice at once."""
        return self._turn or nullcontext()

    def close(self) -> None:
        self._closed = True
        if self._turn is not None:
            self._turn.close()
        while self._kept:
            self._kept.pop().close()
        self.engine.dispose()


def _committed(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Run `work` in a transaction. Whoever has the connection drops it after an error."""
    transaction = connection.begin()
    result = work(connection)
    with _doubted():
        transaction.commit()
    return result


def _committed_here(connection: Connection, work: Callable[[Connection], T]) -> T:
    """The same on SQLite, by the driver's cursor: to begin and commit through SQLAlchemy costs half
    as much as the statements between."""
    direct.execute(connection, "BEGIN IMMEDIATE")
    result = work(connection)
    with _doubted():
        if connection.in_transaction():  # SQLAlchemy has executed something, and knows of it
            connection.commit()
        else:
            direct.execute(connection, "COMMIT")
    return result


@contextmanager
def _doubted() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _unavailable(
            error, "the database failed while committing; the change may be there or not"
        ) from error


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def _beside(url: URL, suffix: str) -> Path:
    assert url.database is not None
    return Path(url.database).with_suffix(suffix)


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest(
            "database_url is not a URL: expected sqlite:///path or postgresql://user@host/name",
            field="database_url",
        ) from error
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise InvalidRequest("database_url names no file", field="database_url")
        return parsed
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise InvalidRequest(
        f"database_url begins with {parsed.drivername}: expected sqlite or postgresql",
        field="database_url",
    )


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "isolation_level": None},
        pool_size=CONNECTIONS_KEPT,
        max_overflow=SQLITE_CONNECTIONS_MAX - CONNECTIONS_KEPT,
        pool_timeout=POOL_SECONDS,
        pool_reset_on_return=None,  # a transaction is ended by whoever began it
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: SqliteConnection, _: object) -> None:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",  # a commit that was answered survives a power cut
            "foreign_keys = ON",
            "temp_store = MEMORY",
            f"cache_size = -{CACHE_KIB}",  # SQLite's own 2 MiB, of 8 connections, add up
            f"journal_size_limit = {WAL_BYTES_KEPT}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if OWN not in connection.get_execution_options():
            connection.exec_driver_sql("BEGIN")

    return engine


def _postgres_engine(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "sluice",
            "options": f"-c statement_timeout={STATEMENT_SECONDS}s",
            "keepalives_idle": 30,
        },
        pool_size=CONNECTIONS_KEPT,
        max_overflow=POSTGRES_CONNECTIONS_MAX - CONNECTIONS_KEPT,
        pool_timeout=POOL_SECONDS,
    )

    @event.listens_for(engine, "checkout")
    def check_alive(connection: psycopg.Connection, *_: object) -> None:
        """An idle connection on which something is to be read has been cut by the server. Seeing
        that costs no round trip, unlike asking."""
        idle = select_module.poll()
        idle.register(connection.fileno(), select_module.POLLIN)
        if idle.poll(0):
            raise InvalidatePoolError("the server has ended this connection")

    return engine


def _may_retry(error: DBAPIError) -> bool:
    """Whether nothing was committed and another try may do better."""
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _RETRIED_STATES


def _unavailable(error: SQLAlchemyError, what: str) -> StoreUnavailable:
    cause = error.orig if isinstance(error, DBAPIError) else error
    full = (
        getattr(cause, "sqlstate", None) == _DISK_FULL
        or getattr(cause, "sqlite_errorcode", None) == SQLITE_FULL
    )
    return (StoreFull if full else StoreUnavailable)(f"{what}: {cause}")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict(f"the database refuses the change: {error.orig}") from error
    except (DataError, UnicodeError, OverflowError) as error:
        detail = error.orig if isinstance(error, DataError) else error
        raise InvalidRequest(f"a value cannot be stored: {detail}") from error
    except (DBAPIError, PendingRollbackError) as error:
        raise _unavailable(error, "the database failed") from error
    except PoolTimeout as error:
        raise StoreUnavailable(
            f"no database connection of this process became free in {POOL_SECONDS} s"
        ) from error
    except SQLAlchemyError as error:
        raise StoreUnavailable(f"the database failed: {error}") from error
