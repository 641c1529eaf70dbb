"""Inbound webhooks, their secrets (sealed), and their deliveries until the work is done."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.errors import HookNotFound, InvalidRequest
from ci_platform.model import RepositoryId
from ci_platform.ports.hooks import Delivery, Hook
from ci_platform.store.cipher import Cipher
from ci_platform.store.codec import Columns, plain, plain_or_none
from ci_platform.store.database import Database
from ci_platform.store.tables import DELIVERIES, HOOKS

DELIVERY_ID_MAX = 256  # characters; the id comes from outside
DELIVERIES_KEPT_MS = 30 * 24 * 3600 * 1000  # how long a repeated delivery is recognised
DELIVERIES_FORGOTTEN_MAX = 100  # old ones dropped with each new one

_PENDING = (
    select(DELIVERIES)
    .where(DELIVERIES.c.due_ms <= bindparam("now"))
    .order_by(DELIVERIES.c.due_ms, DELIVERIES.c.received_ms, DELIVERIES.c.id)
    .limit(bindparam("count"))
)
_OLD = (
    select(DELIVERIES.c.hook_id, DELIVERIES.c.id)
    .where(DELIVERIES.c.received_ms < bindparam("before"), DELIVERIES.c.due_ms.is_(None))
    .order_by(DELIVERIES.c.received_ms)
    .limit(bindparam("count"))
)
_ONE = (
    DELIVERIES.c.hook_id == bindparam("of_hook"),
    DELIVERIES.c.id == bindparam("of_delivery"),
)
_FORGET = DELIVERIES.delete().where(*_ONE)
_DEFER = (
    DELIVERIES.update()
    .where(*_ONE, DELIVERIES.c.due_ms.is_not(None))
    .values(due_ms=bindparam("until"), tries=DELIVERIES.c.tries + 1)
)
_FINISH = (
    DELIVERIES.update()
    .where(*_ONE, DELIVERIES.c.due_ms.is_not(None))
    .values(due_ms=None, body=None, outcome=bindparam("with_outcome"))
)


def check_delivery(delivery: Delivery) -> None:
    """Raises InvalidRequest."""
    if not 1 <= len(delivery.id) <= DELIVERY_ID_MAX:
        raise InvalidRequest(
            f"the delivery id has {len(delivery.id)} characters: expected 1 to {DELIVERY_ID_MAX}",
            field="delivery_id",
        )
    plain(delivery.id, "delivery_id")
    plain(delivery.event, "event")


class SqlHookStore:
    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    def add(self, hook: Hook) -> None:
        columns = {
            "id": plain(hook.id, "id"),
            "repository_id": plain(hook.repository_id, "repository_id"),
            "provider": plain(hook.provider, "provider"),
            "secret": self._cipher.seal(hook.secret, hook.id),
            "remote_url": plain_or_none(hook.remote_url, "remote_url"),
            "created_ms": hook.created_ms,
        }
        self._database.write(lambda connection: connection.execute(HOOKS.insert(), columns))

    def get(self, hook_id: str) -> Hook:
        statement = select(HOOKS).where(HOOKS.c.id == hook_id)
        row = self._database.read(lambda connection: connection.execute(statement).one_or_none())
        if row is None:
            raise HookNotFound(f"no webhook has the id {hook_id}")
        return self._hook_of(row)

    def of_repository(self, repository_id: RepositoryId) -> list[Hook]:
        ours = HOOKS.c.repository_id == repository_id
        statement = select(HOOKS).where(ours).order_by(HOOKS.c.created_ms, HOOKS.c.id)
        rows = self._database.read(lambda connection: connection.execute(statement).all())
        return [self._hook_of(row) for row in rows]

    def remove(self, hook_id: str) -> None:
        statement = HOOKS.delete().where(HOOKS.c.id == hook_id)
        self._database.write(lambda connection: connection.execute(statement))

    def first_delivery(self, hook_id: str, delivery_id: str, at_ms: int) -> bool:
        return self._note(Delivery(hook_id, delivery_id, "", b"", at_ms), pending=False)

    def enqueue(self, delivery: Delivery) -> bool:
        return self._note(delivery, pending=True)

    def pending(self, now_ms: int, *, limit: int = 100) -> list[Delivery]:
        asked = {"now": now_ms, "count": limit}
        rows = self._database.read(lambda connection: connection.execute(_PENDING, asked).all())
        return [_delivery_of(row) for row in rows]

    def defer(self, hook_id: str, delivery_id: str, until_ms: int) -> None:
        asked = {"of_hook": hook_id, "of_delivery": delivery_id, "until": until_ms}
        self._database.write(lambda connection: connection.execute(_DEFER, asked))

    def finish(self, hook_id: str, delivery_id: str, outcome: str) -> None:
        asked = {
            "of_hook": hook_id,
            "of_delivery": delivery_id,
            "with_outcome": plain(outcome, "outcome"),
        }
        self._database.write(lambda connection: connection.execute(_FINISH, asked))

    def forget(self, now_ms: int, *, limit: int = 500) -> int:
        return self._database.write(lambda connection: _forget(connection, now_ms, limit))

    def _note(self, delivery: Delivery, *, pending: bool) -> bool:
        check_delivery(delivery)
        columns: dict[str, object] = {
            "hook_id": delivery.hook_id,
            "id": delivery.id,
            "event": delivery.event,
            "body": delivery.body if pending else None,
            "received_ms": delivery.received_ms,
            "due_ms": delivery.received_ms if pending else None,
            "tries": delivery.tries,
            "outcome": None,
        }
        self.get(delivery.hook_id)
        return self._database.write(
            lambda connection: _insert(connection, columns, delivery.received_ms)
        )

    def _hook_of(self, row: Columns) -> Hook:
        return Hook(
            id=row.id,
            repository_id=RepositoryId(row.repository_id),
            provider=row.provider,
            secret=self._cipher.open(row.secret, row.id),
            remote_url=row.remote_url,
            created_ms=row.created_ms,
        )


def _insert(connection: Connection, columns: dict[str, object], received_ms: int) -> bool:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(DELIVERIES).on_conflict_do_nothing().returning(DELIVERIES.c.id)
    first = connection.execute(statement, columns).one_or_none() is not None
    _forget(connection, received_ms, DELIVERIES_FORGOTTEN_MAX)
    return first


def _forget(connection: Connection, now_ms: int, limit: int) -> int:
    asked = {"before": now_ms - DELIVERIES_KEPT_MS, "count": limit}
    old = [
        {"of_hook": row.hook_id, "of_delivery": row.id} for row in connection.execute(_OLD, asked)
    ]
    if old:
        connection.execute(_FORGET, old)
    return len(old)


def _delivery_of(row: Columns) -> Delivery:
    return Delivery(
        hook_id=row.hook_id,
        id=row.id,
        event=row.event,
        body=row.body or b"",
        received_ms=row.received_ms,
        tries=row.tries,
    )
