"""Which object holds the newest state of a repository's own database: one row each, moved by
compare-and-swap. So of two workers that changed the same state, one is refused and looks again."""

from __future__ import annotations

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import RepositoryId
from ci_platform.ports.granting import Shelved
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.tables import SHELVES

_FIRST = {
    "sqlite": sqlite.insert(SHELVES).on_conflict_do_nothing().returning(SHELVES.c.version),
    "postgresql": postgresql.insert(SHELVES).on_conflict_do_nothing().returning(SHELVES.c.version),
}


class SqlShelfStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, repository_id: RepositoryId, name: str) -> Shelved | None:
        wanted = select(SHELVES.c.version, SHELVES.c.object).where(
            SHELVES.c.repository_id == repository_id, SHELVES.c.name == name
        )
        row = self._database.read(lambda connection: connection.execute(wanted).one_or_none())
        return None if row is None else Shelved(row.version, row.object)

    def move(
        self, repository_id: RepositoryId, name: str, *, version: int, to: str
    ) -> Shelved | None:
        plain(to, "to")
        row = {"repository_id": repository_id, "name": name, "version": version + 1, "object": to}

        def work(connection: Connection) -> bool:
            if version == 0:
                first = connection.execute(_FIRST[connection.dialect.name], row).scalar()
                return first is not None
            moved = (
                SHELVES.update()
                .where(
                    SHELVES.c.repository_id == repository_id,
                    SHELVES.c.name == name,
                    SHELVES.c.version == version,
                )
                .values(version=version + 1, object=to)
            )
            return connection.execute(moved).rowcount == 1

        return Shelved(version + 1, to) if self._database.write(work) else None

    def remove(self, repository_id: RepositoryId) -> list[str]:
        gone = SHELVES.delete().where(SHELVES.c.repository_id == repository_id)
        return self._database.write(
            lambda connection: list(connection.execute(gone.returning(SHELVES.c.object)).scalars())
        )
