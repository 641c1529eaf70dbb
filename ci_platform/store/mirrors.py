"""Mirrors: where each follows what, and who has a due one in hand."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, case, select

from ci_platform.model import RepositoryId
from ci_platform.ports.mirroring import Mirror
from ci_platform.store.cipher import Cipher
from ci_platform.store.codec import Columns, plain, plain_or_none
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.telling_tables import MIRRORS

_OF = MIRRORS.c.repository_id == bindparam("of_repository")
_GET = Direct(select(MIRRORS).where(_OF))
_DUE = (
    select(MIRRORS)
    .where(MIRRORS.c.next_ms <= bindparam("now"), MIRRORS.c.held_ms <= bindparam("now"))
    .order_by(MIRRORS.c.next_ms)
    .limit(bindparam("count"))
)
_TAKE = (
    MIRRORS.update()
    .where(_OF, MIRRORS.c.held_ms == bindparam("seen"), MIRRORS.c.next_ms.is_not(None))
    .values(held_ms=bindparam("until"), next_ms=bindparam("until"))
)
# Whoever told it to hurry meanwhile has moved next_ms: that stays, and it is due again.
_DONE = (
    MIRRORS.update()
    .where(_OF, MIRRORS.c.held_ms == bindparam("held"))
    .values(
        held_ms=0,
        next_ms=case(
            (MIRRORS.c.next_ms == bindparam("held"), bindparam("then")), else_=MIRRORS.c.next_ms
        ),
        tries=bindparam("with_tries"),
        checked_ms=bindparam("at"),
        synced_ms=bindparam("worked_at"),
        outcome=bindparam("with_outcome"),
    )
)
_HASTEN = MIRRORS.update().where(_OF).values(next_ms=bindparam("now"))


class SqlMirrorStore:
    """`mirroring.MirrorStore`."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    def put(self, mirror: Mirror) -> None:
        password = mirror.password
        columns = {
            "repository_id": plain(mirror.repository_id, "repository_id"),
            "url": plain(mirror.url, "url"),
            "username": plain_or_none(mirror.username, "username"),
            "password": password and self._cipher.seal(password.encode(), mirror.repository_id),
            "every_ms": mirror.every_ms,
            "next_ms": mirror.next_ms,
            "held_ms": mirror.held_ms,
            "tries": mirror.tries,
            "checked_ms": mirror.checked_ms,
            "synced_ms": mirror.synced_ms,
            "outcome": plain_or_none(mirror.outcome, "outcome"),
        }

        def work(connection: Connection) -> None:
            connection.execute(MIRRORS.delete().where(_OF), _asked(mirror.repository_id))
            connection.execute(MIRRORS.insert(), columns)

        self._database.write(work)

    def get(self, repository_id: RepositoryId) -> Mirror | None:
        asked = _asked(repository_id)
        rows = self._database.read(lambda connection: _GET.rows(connection, asked))
        return self._mirror_of(rows[0]) if rows else None

    def remove(self, repository_id: RepositoryId) -> bool:
        gone, asked = MIRRORS.delete().where(_OF), _asked(repository_id)
        return self._database.write(lambda connection: connection.execute(gone, asked).rowcount > 0)

    def hasten(self, repository_id: RepositoryId, now_ms: int) -> bool:
        asked = {**_asked(repository_id), "now": now_ms}
        return self._database.write(
            lambda connection: connection.execute(_HASTEN, asked).rowcount > 0
        )

    def take(self, now_ms: int, *, until_ms: int, limit: int) -> list[Mirror]:
        asked = {"now": now_ms, "count": limit}
        rows = self._database.read(lambda connection: connection.execute(_DUE, asked).all())
        return [
            self._mirror_of(row, held_ms=until_ms)
            for row in rows
            if self._taken(row.repository_id, row.held_ms, until_ms)
        ]

    def _taken(self, repository_id: str, seen_ms: int, until_ms: int) -> bool:
        asked = {"of_repository": repository_id, "seen": seen_ms, "until": until_ms}
        return (
            self._database.write(lambda connection: connection.execute(_TAKE, asked).rowcount) > 0
        )

    def done(
        self, mirror: Mirror, now_ms: int, *, next_ms: int | None, outcome: str, worked: bool
    ) -> None:
        asked = {
            **_asked(mirror.repository_id),
            "held": mirror.held_ms,
            "then": next_ms,
            "with_tries": 0 if worked else mirror.tries + 1,
            "at": now_ms,
            "worked_at": now_ms if worked else mirror.synced_ms,
            "with_outcome": plain(outcome, "outcome"),
        }
        self._database.write(lambda connection: connection.execute(_DONE, asked))

    def _mirror_of(self, row: Columns, held_ms: int | None = None) -> Mirror:
        sealed = row.password
        return Mirror(
            repository_id=RepositoryId(row.repository_id),
            url=row.url,
            username=row.username,
            password=None
            if sealed is None
            else self._cipher.open(sealed, row.repository_id).decode(),
            every_ms=row.every_ms,
            next_ms=row.next_ms,
            held_ms=row.held_ms if held_ms is None else held_ms,
            tries=row.tries,
            checked_ms=row.checked_ms,
            synced_ms=row.synced_ms,
            outcome=row.outcome,
        )


def _asked(repository_id: RepositoryId) -> dict[str, object]:
    return {"of_repository": repository_id}
