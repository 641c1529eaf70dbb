"""Turns at duties that one process at a time is enough for: a row each, moved by whoever comes
first when it is due. Nothing is held meanwhile, so nobody has to give anything back."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.ports import Clock
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.tables import DUTIES

_NEXT = select(DUTIES.c.next_ms).where(DUTIES.c.name == bindparam("of_duty"))
_MOVE = (
    DUTIES.update()
    .where(DUTIES.c.name == bindparam("of_duty"), DUTIES.c.next_ms <= bindparam("now"))
    .values(next_ms=bindparam("then"))
)
_FIRST = {
    "sqlite": sqlite.insert(DUTIES).on_conflict_do_nothing().returning(DUTIES.c.name),
    "postgresql": postgresql.insert(DUTIES).on_conflict_do_nothing().returning(DUTIES.c.name),
}


class SqlDutyStore:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def take(self, name: str, *, every_ms: int) -> bool:
        plain(name, "name")
        now_ms = self._clock.now_ms()
        asked = {"of_duty": name}
        # Looked at first: most callers come too early, and need no transaction to see it.
        due_ms = self._database.read(lambda connection: connection.execute(_NEXT, asked).scalar())
        if due_ms is not None and due_ms > now_ms:
            return False

        def work(connection: Connection) -> bool:
            first = {"name": name, "next_ms": now_ms + every_ms}
            if connection.execute(_FIRST[connection.dialect.name], first).scalar() is not None:
                return True
            moved = {**asked, "now": now_ms, "then": now_ms + every_ms}
            return connection.execute(_MOVE, moved).rowcount == 1

        return self._database.write(work)
