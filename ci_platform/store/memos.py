"""Results of commands kept for later runs, by scope and key. A row goes with the run it is of.

So what a memo of a result refers to, layers and objects, is kept alive by that run's journal, and
needs no references of its own; the one object of a directory is its own, see retention.py. What a
repository keeps is bounded: each new memo pushes out those that were used longest ago.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import RepositoryId, RunId
from ci_platform.ports import Clock
from ci_platform.shell import Memo, MemoLimits
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import MEMOS, RUNS

_OF = and_(
    MEMOS.c.repository_id == bindparam("repository_id"),
    MEMOS.c.key == bindparam("key"),
)
_FIND = (
    select(MEMOS, RUNS.c.id, RUNS.c.number)
    .join(RUNS, RUNS.c.n == MEMOS.c.run_n)
    .where(_OF, MEMOS.c.scope.in_(bindparam("scopes", expanding=True)))
)
_RUN = select(RUNS.c.n).where(RUNS.c.id == bindparam("run_id"))
_USED = (
    select(MEMOS.c.scope, MEMOS.c.key, MEMOS.c.size)
    .where(MEMOS.c.repository_id == bindparam("repository_id"))
    .order_by(MEMOS.c.used_ms.desc())
)
_DROP = MEMOS.delete().where(
    MEMOS.c.repository_id == bindparam("of_repository"),
    MEMOS.c.scope == bindparam("of_scope"),
    MEMOS.c.key == bindparam("of_key"),
)
_CHANGED = ("run_n", "step", "result", "used_ms", "size", "digest")


class SqlMemoStore:
    def __init__(self, database: Database, clock: Clock, limits: MemoLimits) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits

    def find(self, repository_id: RepositoryId, scopes: Sequence[str], key: str) -> Memo | None:
        asked = {"repository_id": repository_id, "scopes": list(scopes), "key": key}
        rows = self._database.read(lambda connection: connection.execute(_FIND, asked).all())
        found = {row.scope: row for row in rows}
        row = next((found[scope] for scope in scopes if scope in found), None)
        if row is None:
            return None
        return Memo(
            RunId(row.id), row.number, row.step, unpack(row.result), row.scope, row.size, row.digest
        )

    def put(self, repository_id: RepositoryId, scope: str, key: str, memo: Memo) -> None:
        place = {
            "repository_id": repository_id,
            "scope": plain(scope, "scope"),
            "key": plain(key, "key"),
        }
        columns = self._columns(memo)

        def work(connection: Connection) -> None:
            run_n = connection.execute(_RUN, {"run_id": memo.run_id}).scalar_one_or_none()
            if run_n is None:
                return
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            new = insert(MEMOS)
            statement = new.on_conflict_do_update(
                index_elements=["repository_id", "scope", "key"],
                set_={name: new.excluded[name] for name in _CHANGED},
            )
            connection.execute(statement, {**place, **columns, "run_n": run_n})
            _evict(connection, repository_id, self._limits)

        self._database.write(work)

    def rehome(self, repository_id: RepositoryId, key: str, found: Memo, taken: Memo) -> bool:
        columns = self._columns(taken)

        def work(connection: Connection) -> bool:
            before = connection.execute(_RUN, {"run_id": found.run_id}).scalar_one_or_none()
            after = connection.execute(_RUN, {"run_id": taken.run_id}).scalar_one_or_none()
            if before is None or after is None:
                return False
            statement = (
                MEMOS.update()
                .where(
                    MEMOS.c.repository_id == repository_id,
                    MEMOS.c.scope == found.scope,
                    MEMOS.c.key == key,
                    MEMOS.c.run_n == before,
                    MEMOS.c.step == found.step,
                )
                .values({**columns, "run_n": after})
            )
            return connection.execute(statement).rowcount == 1

        return self._database.write(work)

    def _columns(self, memo: Memo) -> dict[str, object]:
        return {
            "step": plain(memo.step, "step"),
            "result": pack(dict(memo.result), "result"),
            "used_ms": self._clock.now_ms(),
            "size": memo.size,
            "digest": memo.digest,
        }


def _evict(connection: Connection, repository_id: RepositoryId, limits: MemoLimits) -> None:
    """Drop what was used longest ago, until the repository is within its limits."""
    size = 0
    gone = []
    asked = {"repository_id": repository_id}
    for count, row in enumerate(connection.execute(_USED, asked).all(), 1):
        size += row.size
        if count > 1 and (count > limits.count or size > limits.size):
            gone.append({"of_repository": repository_id, "of_scope": row.scope, "of_key": row.key})
    if gone:
        connection.execute(_DROP, gone)
