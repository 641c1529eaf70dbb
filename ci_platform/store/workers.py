"""Rows of workers, by their heartbeats, for people to see who is there."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Insert, Table, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import WorkerId
from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.store.codec import plain, plain_or_none
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import OPERATIONS, RUNS, WORKERS

LISTED_MAX = 1000

_SHOWN = (
    *("host", "pid", "started_ms", "seen_ms", "beat_ms"),
    *("labels", "capacity", "draining", "obstacle"),
)


def _upsert(insert: Callable[[Table], sqlite.Insert | postgresql.Insert]) -> Insert:
    new = insert(WORKERS)
    return new.on_conflict_do_update(
        index_elements=["id"], set_={column: new.excluded[column] for column in _SHOWN}
    ).returning(WORKERS.c.drain)


_BEAT = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}
_ALL = select(WORKERS).order_by(WORKERS.c.id).limit(LISTED_MAX)
_DRAIN = WORKERS.update().where(WORKERS.c.id == bindparam("of_worker")).values(drain=True)
_GONE = WORKERS.delete().where(WORKERS.c.id == bindparam("of_worker"))
_FORGET = WORKERS.delete().where(WORKERS.c.seen_ms < bindparam("before"))


class SqlWorkerStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def beat(self, record: WorkerRecord) -> bool:
        columns = {
            "id": plain(record.id, "worker"),
            "host": plain(record.host, "host"),
            "pid": record.pid,
            "started_ms": record.started_ms,
            "seen_ms": record.seen_ms,
            "beat_ms": record.beat_ms,
            "labels": pack(list(record.labels), "labels"),
            "capacity": record.capacity,
            "draining": record.draining,
            "obstacle": plain_or_none(record.obstacle, "obstacle"),
            "drain": False,  # of a new row
        }
        return self._database.write(
            lambda connection: bool(
                connection.execute(_BEAT[connection.dialect.name], columns).scalar_one()
            )
        )

    def drain(self, worker: WorkerId) -> bool:
        asked = {"of_worker": worker}
        return self._database.write(
            lambda connection: connection.execute(_DRAIN, asked).rowcount == 1
        )

    def gone(self, worker: WorkerId) -> None:
        self._database.write(lambda connection: connection.execute(_GONE, {"of_worker": worker}))

    def list(self) -> list[WorkerRecord]:
        return self._database.read(_list)

    def forget(self, before_ms: int) -> int:
        return self._database.write(
            lambda connection: connection.execute(_FORGET, {"before": before_ms}).rowcount
        )


def _list(connection: Connection) -> list[WorkerRecord]:
    runs, operations = _held(connection, RUNS), _held(connection, OPERATIONS)
    return [
        WorkerRecord(
            id=WorkerId(row.id),
            host=row.host,
            pid=row.pid,
            started_ms=row.started_ms,
            seen_ms=row.seen_ms,
            beat_ms=row.beat_ms,
            labels=tuple(unpack(row.labels)),
            capacity=row.capacity,
            draining=row.draining or row.drain,
            runs=runs.get(row.id, 0),
            operations=operations.get(row.id, 0),
            obstacle=row.obstacle,
        )
        for row in connection.execute(_ALL)
    ]


def _held(connection: Connection, table: Table) -> dict[str, int]:
    """How many rows of a table each worker has leased."""
    leased = (
        select(table.c.worker, func.count())
        .where(table.c.worker.is_not(None))
        .group_by(table.c.worker)
    )
    return {worker: count for worker, count in connection.execute(leased)}
