"""Schedules of pipelines, with the time each is due next. When that is, commands say."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import RepositoryId
from ci_platform.scheduling import Schedule
from ci_platform.store.codec import Columns, plain
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.tables import SCHEDULES

_OF = (
    SCHEDULES.c.repository_id == bindparam("of_repository"),
    SCHEDULES.c.pipeline == bindparam("of_pipeline"),
    SCHEDULES.c.cron == bindparam("of_cron"),
    SCHEDULES.c.timezone == bindparam("of_timezone"),
)
_ALL_OF = Direct(select(SCHEDULES).where(SCHEDULES.c.repository_id == bindparam("of_repository")))
_DUE = (
    select(SCHEDULES)
    .where(SCHEDULES.c.next_ms <= bindparam("now"))
    .order_by(SCHEDULES.c.next_ms)
    .limit(bindparam("count"))
)
_MOVE = (
    SCHEDULES.update()
    .where(*_OF, SCHEDULES.c.next_ms == bindparam("seen"))
    .values(next_ms=bindparam("then"))
)
_DROP = SCHEDULES.delete().where(*_OF)
_ADD = {
    "sqlite": sqlite.insert(SCHEDULES).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(SCHEDULES).on_conflict_do_nothing(),
}


class SqlScheduleStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def replace(self, repository_id: str, schedules: Sequence[Schedule]) -> None:
        rows = [
            {
                "repository_id": plain(repository_id, "repository_id"),
                "pipeline": plain(one.pipeline, "pipeline"),
                "cron": plain(one.cron, "cron"),
                "timezone": plain(one.timezone, "timezone"),
                "next_ms": one.next_ms,
            }
            for one in schedules
        ]

        wanted = {one.key for one in schedules}
        if wanted == {one.key for one in self.of_repository(repository_id)}:
            return  # as after most pushes

        def work(connection: Connection) -> None:
            known = map(_schedule_of, _ALL_OF.rows(connection, _asked(repository_id)))
            gone = [_one(one) for one in known if one.key not in wanted]
            if gone:
                connection.execute(_DROP, gone)
            if rows:
                connection.execute(_ADD[connection.dialect.name], rows)

        self._database.write(work)

    def of_repository(self, repository_id: str) -> list[Schedule]:
        rows = self._database.read(
            lambda connection: _ALL_OF.rows(connection, _asked(repository_id))
        )
        return sorted((_schedule_of(row) for row in rows), key=lambda one: one.key)

    def due(self, now_ms: int, *, limit: int = 100) -> list[Schedule]:
        asked = {"now": now_ms, "count": limit}
        rows = self._database.read(lambda connection: connection.execute(_DUE, asked).all())
        return [_schedule_of(row) for row in rows]

    def move(self, schedule: Schedule, next_ms: int) -> bool:
        asked = {**_one(schedule), "seen": schedule.next_ms, "then": next_ms}
        return self._database.write(
            lambda connection: connection.execute(_MOVE, asked).rowcount == 1
        )


def _asked(repository_id: str) -> dict[str, object]:
    return {"of_repository": repository_id}


def _one(schedule: Schedule) -> dict[str, object]:
    return {
        "of_repository": schedule.repository_id,
        "of_pipeline": schedule.pipeline,
        "of_cron": schedule.cron,
        "of_timezone": schedule.timezone,
    }


def _schedule_of(row: Columns) -> Schedule:
    return Schedule(
        RepositoryId(row.repository_id), row.pipeline, row.cron, row.timezone, row.next_ms
    )
