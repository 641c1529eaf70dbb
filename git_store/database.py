"""Transactions on the shared engine, the same on SQLite and PostgreSQL, and the store's ids."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, update
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError, TimeoutError

from git_store.direct import Direct
from git_store.errors import StorageFailed
from git_store.tables import metadata, repositories

Clock = Callable[[], int]  # milliseconds since 1970

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_CONNECTIONS_KEPT = 4  # to a SQLite file; of the engine's
_TAKE_WRITE_LOCK = Direct(
    update(repositories).where(repositories.c.id == "").values(description="")
)  # matches nothing


class Database:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._kept: deque[Connection] = deque()  # to the SQLite file, in nobody's hands
        self._closed = False

    def create_tables(self) -> None:
        metadata.create_all(self._engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in no transaction, that writes nothing. Statements may each see a newer
        state. Raises StorageFailed."""
        try:
            if not self._sqlite:
                with self._engine.connect() as connection:
                    yield connection
                return
            # Connections to a file are kept: getting one from the pool and giving it back costs as
            # much as a few statements.
            try:
                connection = self._kept.pop()
            except IndexError:
                connection = self._engine.connect()
            try:
                yield connection
                if connection.in_transaction():  # statements that SQLAlchemy executes begin one
                    connection.rollback()
            except BaseException:
                connection.close()
                raise
            if len(self._kept) < _CONNECTIONS_KEPT and not self._closed:
                self._kept.append(connection)
            else:
                connection.close()
        except (OperationalError, InterfaceError, InvalidatePoolError, TimeoutError) as error:
            raise StorageFailed(f"the database failed: {error}") from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, committed at the end unless an exception passes.

        On SQLite the write lock is taken before anything is read, as BEGIN IMMEDIATE would: a
        transaction that reads first and writes later fails at once when another wrote in between,
        whatever the busy timeout. The engine is not ours, so its way of beginning is unknown; a
        first statement that writes nothing does the same for all of them.
        """
        with self.reading() as connection, connection.begin():
            if self._sqlite:
                _TAKE_WRITE_LOCK.run(connection, {})
            yield connection

    def close(self) -> None:
        """Let go of the connections that are kept. The engine stays its owner's."""
        self._closed = True
        while self._kept:
            self._kept.pop().close()


def new_id(prefix: str, now_ms: int) -> str:
    """`prefix_` and 26 characters that sort by time: 48 bits of time, 80 of chance."""
    number = (now_ms & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    letters = [_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(letters)}"
