"""A process that executes the SQL of one repository's code, and nothing else.

Run as a file, without this package: `python -I -S sql_process.py SETUP`. SQLite parses what
strangers wrote, so a statement that eats memory or time, or breaks SQLite itself, ends this process
and not a worker. Each statement is one transaction, on a connection of its own: nothing an author
sets outlives it. The parent (sql.py) ends the process when a statement does not end by itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import resource
import socket
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

HEADER = struct.Struct(">I")
PAGE_BYTES = 4_096
PROGRESS_STEPS = 5_000  # of SQLite's machine between two looks at the clock
BUSY_MS = 5_000  # for another worker's statement on the same database to end
PROCESS_BYTES = 512 << 20  # of address space: Python, SQLite and what a statement sorts

LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 32,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 500,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 1_000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 10,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
# What a statement may do. Anything else is refused: ATTACH and DETACH (so VACUUM INTO too),
# transactions, which would outlive the statement, virtual tables, temporary things.
ALLOWED = {
    sqlite3.SQLITE_CREATE_INDEX: "",
    sqlite3.SQLITE_CREATE_TABLE: "",
    sqlite3.SQLITE_CREATE_TRIGGER: "",
    sqlite3.SQLITE_CREATE_VIEW: "",
    sqlite3.SQLITE_DELETE: "",
    sqlite3.SQLITE_DROP_INDEX: "",
    sqlite3.SQLITE_DROP_TABLE: "",
    sqlite3.SQLITE_DROP_TRIGGER: "",
    sqlite3.SQLITE_DROP_VIEW: "",
    sqlite3.SQLITE_INSERT: "",
    sqlite3.SQLITE_READ: "",
    sqlite3.SQLITE_SELECT: "",
    sqlite3.SQLITE_UPDATE: "",
    sqlite3.SQLITE_ALTER_TABLE: "",
    sqlite3.SQLITE_REINDEX: "",
    sqlite3.SQLITE_ANALYZE: "",
    sqlite3.SQLITE_RECURSIVE: "",
}
REFUSED = {
    sqlite3.SQLITE_ATTACH: "ATTACH and VACUUM",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_PRAGMA: "this PRAGMA",
    sqlite3.SQLITE_TRANSACTION: "BEGIN, COMMIT and ROLLBACK: each statement is one transaction",
    sqlite3.SQLITE_SAVEPOINT: "SAVEPOINT: each statement is one transaction",
    sqlite3.SQLITE_CREATE_VTABLE: "virtual tables",
    sqlite3.SQLITE_DROP_VTABLE: "virtual tables",
    sqlite3.SQLITE_FUNCTION: "this function",
}
PRAGMAS = frozenset(  # that only tell, and only so: no value may be given but a table's name
    ("foreign_key_list", "index_info", "index_list", "index_xinfo", "table_info", "table_list")
    + ("table_xinfo",)
)
FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "sqlite_compileoption_get"))


class Refusal(Exception):
    """An answer that is an error: its type and message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message


class Statement:
    """One statement of one author, on its own connection."""

    def __init__(self, setup: dict[str, Any], asked: dict[str, Any]) -> None:
        self._setup = setup
        self._asked = asked
        self._until = math.inf
        self._late = False
        self._refused = ""
        self._ours = False  # the platform's own words, such as COMMIT

    def run(self) -> list[dict[str, Any]]:
        try:
            with self._connection() as connection:
                return self._execute(connection)
        except MemoryError:
            raise Refusal("TooLarge", "the statement needs more memory than it may use") from None
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
            raise self._refusal(error) from error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(
            self._asked["path"], isolation_level=None, timeout=BUSY_MS / 1000
        )
        try:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            pages = max(2, self._setup["database_bytes"] // PAGE_BYTES)
            for word in (
                f"page_size = {PAGE_BYTES}",
                f"max_page_count = {pages}",
                "journal_mode = TRUNCATE",  # between statements a database is one file
                "synchronous = FULL",
                "temp_store = MEMORY",  # which the process's limit bounds; a file would not be
                "trusted_schema = OFF",
                "cell_size_check = ON",
                "foreign_keys = ON",
            ):
                connection.execute(f"PRAGMA {word}").close()
            for limit, most in LIMITS.items():
                connection.setlimit(limit, most)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._setup["value_bytes"])
            connection.set_authorizer(self._authorize)
            connection.set_progress_handler(self._progress, PROGRESS_STEPS)
            yield connection
        finally:
            connection.set_progress_handler(None, 0)
            connection.close()

    def _execute(self, connection: sqlite3.Connection) -> list[dict[str, Any]]:
        arguments = [_given(each) for each in self._asked["arguments"]]
        self._say(connection, "BEGIN IMMEDIATE")
        self._until = time.monotonic() + self._setup["seconds"]
        try:
            cursor = connection.execute(self._asked["statement"], arguments)
            rows = self._rows(cursor)
            cursor.close()
        except BaseException:
            self._until = math.inf
            if connection.in_transaction:
                self._say(connection, "ROLLBACK")
            raise
        self._until = math.inf
        self._say(connection, "COMMIT")
        return rows

    def _say(self, connection: sqlite3.Connection, words: str) -> None:
        self._ours = True
        try:
            connection.execute(words).close()
        finally:
            self._ours = False

    def _rows(self, cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
        names = [column[0] for column in cursor.description or ()]
        rows: list[dict[str, Any]] = []
        size = 0
        for values in cursor:
            row = {name: _told(name, value) for name, value in zip(names, values, strict=True)}
            size += len(json.dumps(row))
            rows.append(row)
            if len(rows) > self._setup["rows"]:
                most = self._setup["rows"]
                raise Refusal("TooLarge", f"more than {most:,} rows: narrow it down with LIMIT")
            if size > self._setup["answer_bytes"]:
                most = self._setup["answer_bytes"]
                raise Refusal("TooLarge", f"rows of more than {most:,} bytes: ask for less")
        return rows

    def _progress(self) -> int:
        self._late = time.monotonic() > self._until
        return int(self._late)

    def _authorize(
        self, action: int, first: str | None, second: str | None, *place: str | None
    ) -> int:
        if self._ours or action in ALLOWED:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in PRAGMAS:
            return sqlite3.SQLITE_OK
        self._refused = REFUSED.get(action, "this statement")
        return sqlite3.SQLITE_DENY

    def _refusal(self, error: Exception) -> Refusal:
        said = str(error)
        if self._refused:
            return Refusal("SqlError", f"the platform does not allow {self._refused}")
        if self._late:
            seconds = self._setup["seconds"]
            return Refusal("SqlError", f"the statement took longer than {seconds:g} seconds")
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            most = self._setup["database_bytes"]
            return Refusal("TooMany", f"the database is full: its quota is {most:,} bytes")
        if code == sqlite3.SQLITE_NOMEM:
            return Refusal("TooLarge", "the statement needs more memory than it may use")
        if isinstance(error, OverflowError):
            said = "a number is outside of SQLite's 64 bits"
        return Refusal("SqlError", said[:1_000])


def _given(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def _told(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        raise Refusal("SqlError", f"the column {name[:100]!r} holds {value}, which is not JSON")
    return value


def answer(setup: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"rows": Statement(setup, asked).run()}
    except Refusal as refusal:
        return {"error": [refusal.kind, refusal.message]}


def read(channel: socket.socket) -> bytes | None:
    """One message; None when the parent has hung up."""
    data = bytearray()
    wanted = HEADER.size
    while len(data) < wanted:
        piece = channel.recv(min(1 << 20, wanted - len(data)))
        if not piece:
            return None
        data += piece
        if wanted == HEADER.size and len(data) == wanted:
            wanted += HEADER.unpack(data)[0]
    return bytes(data[HEADER.size :])


def main() -> None:
    setup = json.loads(sys.argv[1])
    channel = socket.socket(fileno=setup["fd"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (PROCESS_BYTES, PROCESS_BYTES))
    most = setup["database_bytes"] * 17 // 16 + (1 << 20)  # a transaction's journal is larger
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    while (message := read(channel)) is not None:
        text = json.dumps(answer(setup, json.loads(message))).encode()
        channel.sendall(HEADER.pack(len(text)) + text)


if __name__ == "__main__":
    main()
