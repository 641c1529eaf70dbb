"""Statements that every request makes, on the driver's own connection.

SQLAlchemy's way of executing a statement costs ten times what SQLite takes for it, so these are
only written by it, once for each database, and then run without it. Errors look as they would have.
Rows are plain tuples; parameters are of types that drivers take as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import Executable

Row = tuple[Any, ...]
Values = Mapping[str, object]


class Direct:
    """One statement, whose parameters are its named bindparams."""

    def __init__(self, statement: Executable) -> None:
        self._statement: Any = statement  # what is used of it has no common type
        self._made: dict[str, tuple[str, Sequence[str] | None, dict[str, object]]] = {}

    def rows(self, connection: Connection, values: Values) -> list[Row]:
        """Execute it and return all rows."""
        found: list[Row] = self._run(connection, values).fetchall()
        return found

    def one(self, connection: Connection, values: Values) -> Row | None:
        """Execute it and return its only row, or None."""
        found = self.rows(connection, values)
        return found[0] if found else None

    def run(self, connection: Connection, values: Values) -> None:
        """Execute it."""
        self._run(connection, values)

    def many(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute it once for each of `rows`, which are not none."""
        self._run(connection, rows[0], rows)

    def _run(
        self, connection: Connection, values: Values, rows: Sequence[Values] | None = None
    ) -> Any:
        """A cursor, for what it found. Raises DBAPIError, as SQLAlchemy does."""
        dialect: Any = connection.dialect
        text, order, constants = self._made.get(dialect.name) or self._make(dialect, values)
        driver: Any = connection.connection.driver_connection
        try:
            if rows is None:
                return driver.execute(text, _given(values, order, constants))
            every = [_given(row, order, constants) for row in rows]
            return driver.cursor().executemany(text, every)
        except dialect.loaded_dbapi.Error as error:
            gone = dialect.is_disconnect(error, driver, None)
            if gone:
                connection.invalidate(error)
            raise DBAPIError.instance(
                text,
                None,
                error,
                dialect.loaded_dbapi.Error,
                connection_invalidated=gone,
                dialect=dialect,
            ) from error

    def _make(
        self, dialect: Any, values: Values
    ) -> tuple[str, Sequence[str] | None, dict[str, object]]:
        state = self._statement.compile(dialect=dialect).construct_expanded_state(dict(values))
        constants = {key: value for key, value in state.parameters.items() if key not in values}
        made = self._made[dialect.name] = (state.statement, state.positiontup, constants)
        return made


def _given(values: Values, order: Sequence[str] | None, constants: Values) -> Values | list[object]:
    every = {**constants, **values} if constants else values
    return every if order is None else [every[name] for name in order]
