"""`self.env.storage`: the repository's own values (kv) and database (sql).

Both are SQLite databases of that repository alone, each with its own quota. For bodies of steps and
trusted code only: a fork's pull request must neither read nor spoil what a repository keeps.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from ci_platform.capabilities import arguments as read
from ci_platform.capabilities.sql import SqlDatabases
from ci_platform.errors import InvalidRequest, NotGranted, SqlError, TooLarge
from ci_platform.model import Json
from ci_platform.ports.granting import Grant

KEY_BYTES_MAX = 512
LAST_CHARACTER = "\U0010ffff"
KEYS_MAX = 1_000  # of one list
STATEMENT_BYTES_MAX = 100_000
ARGUMENTS_MAX = 1_000

_CREATE = "CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"


def check_granted(grant: Grant) -> None:
    """Whether this code may use storage now. Raises NotGranted."""
    if not grant.trusted:
        raise NotGranted("storage is not for code that comes from outside of the repository")
    if grant.run is not None and not grant.body:
        raise NotGranted("storage is for bodies of steps: no step's body executes now")


class SqlHandler:
    def __init__(self, databases: SqlDatabases) -> None:
        self._databases = databases

    def __call__(self, grant: Grant, method: str, arguments: Mapping[str, Json]) -> Json:
        check_granted(grant)
        if method != "execute":
            raise read.no_method("storage.sql", method)
        read.only(arguments, "statement", "arguments")
        statement = read.text(arguments, "statement", most=STATEMENT_BYTES_MAX)
        return self._databases.execute(
            grant.repository_id, "sql", statement, _values(arguments.get("arguments"))
        )


def _values(found: Json) -> list[Json]:
    if not isinstance(found, list) or len(found) > ARGUMENTS_MAX:
        raise InvalidRequest(f"arguments must be at most {ARGUMENTS_MAX:,}", field="arguments")
    for value in found:
        if isinstance(value, list) or (isinstance(value, dict) and not _is_blob(value)):
            raise InvalidRequest("an argument is no value of a database", field="arguments")
    return found


def _is_blob(value: Mapping[str, Json]) -> bool:
    try:
        base64.b64decode(value["base64"], validate=True)
    except (KeyError, TypeError, ValueError):
        return False
    return len(value) == 1


class KvHandler:
    def __init__(self, databases: SqlDatabases) -> None:
        self._databases = databases

    def __call__(self, grant: Grant, method: str, arguments: Mapping[str, Json]) -> Json:
        check_granted(grant)
        if method == "list":
            return self._list(grant, arguments)
        key = read.text(arguments, "key", most=KEY_BYTES_MAX)
        if method == "get":
            read.only(arguments, "key")
            rows = self._run(grant, "SELECT value FROM kv WHERE key = ?", key)
            return [json.loads(row["value"]) for row in rows]
        if method == "put":
            read.only(arguments, "key", "value")
            return self._put(grant, key, arguments.get("value"))
        if method == "delete":
            read.only(arguments, "key")
            return bool(self._run(grant, "DELETE FROM kv WHERE key = ? RETURNING key", key))
        raise read.no_method("storage.kv", method)

    def _put(self, grant: Grant, key: str, value: Json) -> None:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        size = len(text.encode())
        # SQLite counts a whole row, so key and value together must fit.
        most = self._databases.limits.value_bytes - 2 * KEY_BYTES_MAX
        if size > most:
            raise TooLarge(
                f"value has {size:,} bytes as JSON; the limit is {most:,}", field="value"
            )
        self._run(grant, "INSERT OR REPLACE INTO kv (key, value) VALUES (?, ?)", key, text)

    def _list(self, grant: Grant, arguments: Mapping[str, Json]) -> list[str]:
        read.only(arguments, "prefix", "after", "limit")
        prefix = read.text(arguments, "prefix", most=KEY_BYTES_MAX, empty=True)
        after = read.text(arguments, "after", most=KEY_BYTES_MAX, empty=True)
        limit = read.count(arguments, "limit", most=KEYS_MAX)
        rows = self._run(
            grant,
            "SELECT key FROM kv WHERE key > ? AND key >= ? AND key <= ? ORDER BY key LIMIT ?",
            after,
            prefix,
            prefix + LAST_CHARACTER * KEY_BYTES_MAX,
            limit,
        )
        return [row["key"] for row in rows]

    def _run(self, grant: Grant, statement: str, *values: Json) -> list[dict[str, Json]]:
        try:
            return self._databases.execute(grant.repository_id, "kv", statement, values)
        except SqlError as error:
            if error.detail != "no such table: kv":
                raise
        self._databases.execute(grant.repository_id, "kv", _CREATE, [])
        return self._databases.execute(grant.repository_id, "kv", statement, values)
