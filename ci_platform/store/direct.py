"""Statements of the hot paths, on the driver's own cursor.

A worker executes a few statements for every step of every run, a web process for every request.
SQLAlchemy's way of executing one costs ten times what SQLite takes for it, so these are only made
by SQLAlchemy, once for each database and length of list, and then run without it. Errors, types and
rows look as they would have. Used by the journal, by claims and for who is asking; everything else
has no reason to.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Boolean, Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import Executable

from ci_platform.model import Json
from ci_platform.store.codec import Columns

Values: TypeAlias = Mapping[str, object]
Given: TypeAlias = Mapping[str, object] | Sequence[object]


@dataclass(frozen=True, slots=True)
class _Made:
    """A statement as text for one database."""

    text: str
    order: Sequence[str] | None  # of its parameters; None where they are given by name
    constants: Values  # parameters that never change
    listed: Sequence[str]  # the names that the items of the list go by
    row: Callable[..., Columns]
    booleans: Sequence[int]  # columns in which the database keeps 0 and 1

    def given(self, values: Values) -> Given:
        if self.order is None:
            return values
        return [values[name] for name in self.order]


class Direct:
    """One statement. `each` names its parameter that is a list, for `IN`."""

    def __init__(self, statement: Executable, *, each: str | None = None) -> None:
        self._statement: Json = statement  # what is used of it has no common type
        self._each = each
        self._made: dict[tuple[str, int], _Made] = {}

    def rows(self, connection: Connection, values: Values) -> list[Columns]:
        """Execute it and return all rows."""
        made, given = self._prepared(connection, values)
        cursor = _cursor(connection)
        try:
            _run(connection, cursor, made.text, given)
            found = cursor.fetchall()
        finally:
            cursor.close()
        if not made.booleans:
            return [made.row(*row) for row in found]
        return [made.row(*_with_booleans(row, made.booleans)) for row in found]

    def run(self, connection: Connection, values: Values) -> None:
        """Execute it."""
        made, given = self._prepared(connection, values)
        cursor = _cursor(connection)
        try:
            _run(connection, cursor, made.text, given)
        finally:
            cursor.close()

    def many(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute it once for each of `rows`, which are not none."""
        made = self._for(connection, rows[0], 0)
        cursor = _cursor(connection)
        try:
            _run(connection, cursor, made.text, [made.given(row) for row in rows], many=True)
        finally:
            cursor.close()

    def _prepared(self, connection: Connection, values: Values) -> tuple[_Made, Given]:
        if self._each is None:
            made = self._for(connection, values, 0)
            return made, made.given({**made.constants, **values} if made.constants else values)
        items: Json = values[self._each]
        # Filled up with its last item to a power of two: few lengths, and so few statements.
        size = 1 << (len(items) - 1).bit_length()
        padded = [*items, *[items[-1]] * (size - len(items))]
        made = self._for(connection, {**values, self._each: padded}, size)
        listed = zip(made.listed, padded, strict=True)
        return made, made.given({**made.constants, **values, **dict(listed)})

    def _for(self, connection: Connection, values: Values, size: int) -> _Made:
        dialect = connection.dialect
        made = self._made.get((dialect.name, size))
        if made is None:
            compiled = self._statement.compile(dialect=dialect)
            state = compiled.construct_expanded_state(dict(values))
            listed = state.parameter_expansion.get(self._each, ())
            of_caller = {*values, *listed}
            columns = list(getattr(self._statement, "selected_columns", ()))
            made = self._made[dialect.name, size] = _Made(
                text=state.statement,
                order=state.positiontup,
                constants={k: v for k, v in state.parameters.items() if k not in of_caller},
                listed=listed,
                row=_row_of([column.name for column in columns]),
                booleans=[
                    index
                    for index, column in enumerate(columns)
                    if isinstance(column.type, Boolean) and not dialect.supports_native_boolean
                ],
            )
        return made


def _row_of(columns: Sequence[str]) -> Callable[..., Columns]:
    make: Json = namedtuple
    row: Callable[..., Columns] = make("Row", columns, rename=True)
    return row


def _with_booleans(row: Sequence[Json], at: Sequence[int]) -> Sequence[Json]:
    values = list(row)
    for index in at:
        values[index] = None if values[index] is None else bool(values[index])
    return values


def execute(connection: Connection, text: str) -> None:
    """Execute a statement that has no parameters and no rows."""
    cursor = _cursor(connection)
    try:
        _run(connection, cursor, text, ())
    finally:
        cursor.close()


def _cursor(connection: Connection) -> DBAPICursor:
    return connection.connection.cursor()


def _run(
    connection: Connection, cursor: DBAPICursor, text: str, given: Json, *, many: bool = False
) -> None:
    """Raises DBAPIError, as SQLAlchemy does."""
    dialect = connection.dialect
    errors: Json = dialect.loaded_dbapi.Error
    try:
        (cursor.executemany if many else cursor.execute)(text, given)
    except errors as error:
        gone = dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
        if gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            text, None, error, errors, connection_invalidated=gone, dialect=dialect
        ) from error
