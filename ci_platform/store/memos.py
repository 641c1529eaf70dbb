"""Results of commands kept for later runs, by scope and key. A row goes with the run it is of.

So what a memo refers to, layers and objects, is kept alive by that run's journal, and needs no
references of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import RepositoryId, RunId
from ci_platform.shell import Memo
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import MEMOS, RUNS

_FIND = (
    select(MEMOS.c.scope, MEMOS.c.step, MEMOS.c.result, RUNS.c.id, RUNS.c.number)
    .join(RUNS, RUNS.c.n == MEMOS.c.run_n)
    .where(
        MEMOS.c.repository_id == bindparam("repository_id"),
        MEMOS.c.scope.in_(bindparam("scopes", expanding=True)),
        MEMOS.c.key == bindparam("key"),
    )
)
_RUN = select(RUNS.c.n).where(RUNS.c.id == bindparam("run_id"))


class SqlMemoStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, repository_id: RepositoryId, scopes: Sequence[str], key: str) -> Memo | None:
        asked = {"repository_id": repository_id, "scopes": list(scopes), "key": key}
        rows = self._database.read(lambda connection: connection.execute(_FIND, asked).all())
        found = {row.scope: row for row in rows}
        row = next((found[scope] for scope in scopes if scope in found), None)
        if row is None:
            return None
        return Memo(RunId(row.id), row.number, row.step, unpack(row.result))

    def put(self, repository_id: RepositoryId, scope: str, key: str, memo: Memo) -> None:
        columns = {
            "repository_id": repository_id,
            "scope": plain(scope, "scope"),
            "key": plain(key, "key"),
            "step": plain(memo.step, "step"),
            "result": pack(dict(memo.result), "result"),
        }

        def work(connection: Connection) -> None:
            run_n = connection.execute(_RUN, {"run_id": memo.run_id}).scalar_one_or_none()
            if run_n is None:
                return
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            changed = {"run_n": run_n, "step": columns["step"], "result": columns["result"]}
            statement = insert(MEMOS).on_conflict_do_update(
                index_elements=["repository_id", "scope", "key"], set_=changed
            )
            connection.execute(statement, {**columns, "run_n": run_n})

        self._database.write(work)
