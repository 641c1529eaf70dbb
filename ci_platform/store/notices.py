"""The outbox of notices, the subscriptions to them, and what is on its way to those.

`write_notices` is for whoever has a transaction in which something happens that others may hear of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import RepositoryId
from ci_platform.ports.telling import Notice, NoticeKind, Sending, Subscription
from ci_platform.store.cipher import Cipher
from ci_platform.store.codec import Columns, plain, plain_or_none
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.packing import pack, unpack
from ci_platform.store.telling_tables import NOTICES, SENDINGS, SUBSCRIPTIONS

_WRITE = Direct(NOTICES.insert().values({one.name: bindparam(one.name) for one in NOTICES.c}))
_HEARING = Direct(
    select(SUBSCRIPTIONS.c.id, SUBSCRIPTIONS.c.repository_id, SUBSCRIPTIONS.c.kinds).where(
        SUBSCRIPTIONS.c.ended_ms.is_(None),
        or_(
            SUBSCRIPTIONS.c.repository_id.is_(None),
            SUBSCRIPTIONS.c.repository_id.in_(bindparam("of", expanding=True)),
        ),
    ),
    each="of",
)
_PENDING = select(NOTICES).order_by(NOTICES.c.id).limit(bindparam("count"))
_ADD = {
    "sqlite": sqlite.insert(SENDINGS).on_conflict_do_nothing().returning(SENDINGS.c.notice_id),
    "postgresql": postgresql.insert(SENDINGS)
    .on_conflict_do_nothing()
    .returning(SENDINGS.c.notice_id),
}
_ONE = (
    SENDINGS.c.subscription_id == bindparam("of_subscription"),
    SENDINGS.c.notice_id == bindparam("of_notice"),
)
_DUE = (
    select(SENDINGS)
    .where(SENDINGS.c.due_ms <= bindparam("now"))
    .order_by(SENDINGS.c.due_ms)
    .limit(bindparam("count"))
)
_TAKE = (
    SENDINGS.update()
    .where(*_ONE, SENDINGS.c.due_ms == bindparam("seen"))
    .values(due_ms=bindparam("until"), tries=SENDINGS.c.tries + 1)
)
_TRIED = (
    SENDINGS.update()
    .where(*_ONE, SENDINGS.c.due_ms == bindparam("held"))
    .values(
        due_ms=bindparam("then"), status=bindparam("with_status"), outcome=bindparam("with_outcome")
    )
)
_AGAIN = SENDINGS.update().where(*_ONE).values(due_ms=bindparam("now"), tries=0)
_LOG = (
    select(SENDINGS)
    .where(SENDINGS.c.subscription_id == bindparam("of_subscription"))
    .order_by(SENDINGS.c.created_ms.desc(), SENDINGS.c.notice_id.desc())
    .limit(bindparam("count"))
)
_OLD = (
    select(SENDINGS.c.subscription_id, SENDINGS.c.notice_id)
    .where(SENDINGS.c.created_ms < bindparam("before"), SENDINGS.c.due_ms.is_(None))
    .order_by(SENDINGS.c.created_ms)
    .limit(bindparam("count"))
)
_DROP = SENDINGS.delete().where(*_ONE)
_LEFT = (
    select(SENDINGS.c.notice_id)
    .where(SENDINGS.c.subscription_id == SUBSCRIPTIONS.c.id, SENDINGS.c.due_ms.is_not(None))
    .exists()
)
_DROP_ENDED = SUBSCRIPTIONS.delete().where(SUBSCRIPTIONS.c.ended_ms < bindparam("before"), ~_LEFT)


def write_notices(connection: Connection, notices: Sequence[Notice]) -> None:
    """Put notices, which are not none, into the outbox, in a transaction of what they tell of."""
    rows = [
        {
            "id": one.id,
            "kind": str(one.kind),
            "repository_id": one.repository_id,
            "at_ms": one.at_ms,
            "detail": pack(dict(one.detail), "detail"),
        }
        for one in notices
    ]
    _WRITE.many(connection, rows)


@dataclass(frozen=True, slots=True)
class _Hearer:
    id: str
    repository_id: str | None
    kinds: frozenset[str]


class SqlNoticeStore:
    """`telling.NoticeStore`."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    def pending(self, *, limit: int = 100) -> list[Notice]:
        asked = {"count": limit}
        rows = self._database.read(lambda connection: connection.execute(_PENDING, asked).all())
        return [_notice_of(row) for row in rows]

    def spread(self, told: Sequence[tuple[Notice, bytes]]) -> int:
        hear = self._hearing({notice.repository_id for notice, _ in told})
        rows: dict[str, list[dict[str, object]]] = {
            notice.id: [
                _row(one.id, notice, body)
                for one in hear
                if one.repository_id in (None, notice.repository_id) and notice.kind in one.kinds
            ]
            for notice, body in told
        }
        # A push has an outbox of its own, the git store's: nothing of it is here to be taken out.
        pushed = [one.id for one, _ in told if one.kind is NoticeKind.PUSHED and rows[one.id]]
        boxed = [one.id for one, _ in told if one.kind is not NoticeKind.PUSHED]
        ended = [one for one, _ in told if one.kind is NoticeKind.DELETED]
        if not pushed and not boxed:
            return 0
        gone = NOTICES.delete().where(NOTICES.c.id.in_(boxed)).returning(NOTICES.c.id)

        def work(connection: Connection) -> int:
            # Those that another process has spread are not here any more.
            mine = [*pushed, *(connection.execute(gone).scalars() if boxed else ())]
            add = _ADD[connection.dialect.name]
            new = [row for notice_id in mine for row in rows[notice_id]]
            added = sum(connection.execute(add, row).first() is not None for row in new)
            for notice in ended:
                of = SUBSCRIPTIONS.c.repository_id == notice.repository_id
                end = SUBSCRIPTIONS.update().where(of, SUBSCRIPTIONS.c.ended_ms.is_(None))
                connection.execute(end.values(ended_ms=notice.at_ms))
            return added

        return self._database.write(work)

    def _hearing(self, repositories: Collection[RepositoryId | None]) -> list[_Hearer]:
        """Subscriptions to any of these repositories, and to all."""
        asked = {"of": [one or "" for one in repositories]}
        rows = self._database.read(lambda connection: _HEARING.rows(connection, asked))
        return [_Hearer(row.id, row.repository_id, frozenset(unpack(row.kinds))) for row in rows]

    def subscribe(self, subscription: Subscription) -> None:
        columns = {
            "id": plain(subscription.id, "id"),
            "repository_id": plain_or_none(subscription.repository_id, "repository_id"),
            "url": plain(subscription.url, "url"),
            "secret": self._cipher.seal(subscription.secret, subscription.id),
            "kinds": pack([str(kind) for kind in subscription.kinds], "kinds"),
            "created_ms": subscription.created_ms,
            "ended_ms": None,
        }
        self._database.write(lambda connection: connection.execute(SUBSCRIPTIONS.insert(), columns))

    def subscriptions(self, repository_id: RepositoryId | None) -> list[Subscription]:
        of = SUBSCRIPTIONS.c.repository_id
        which = of.is_(None) if repository_id is None else of == repository_id
        wanted = select(SUBSCRIPTIONS).where(which).order_by(SUBSCRIPTIONS.c.id)
        rows = self._database.read(lambda connection: connection.execute(wanted).all())
        return [self._subscription_of(row) for row in rows]

    def subscription(self, subscription_id: str) -> Subscription | None:
        wanted = select(SUBSCRIPTIONS).where(SUBSCRIPTIONS.c.id == subscription_id)
        row = self._database.read(lambda connection: connection.execute(wanted).one_or_none())
        return None if row is None else self._subscription_of(row)

    def unsubscribe(self, subscription_id: str) -> None:
        gone = SUBSCRIPTIONS.delete().where(SUBSCRIPTIONS.c.id == subscription_id)
        self._database.write(lambda connection: connection.execute(gone))

    def take(self, now_ms: int, *, until_ms: int, limit: int) -> list[Sending]:
        asked = {"now": now_ms, "count": limit}
        rows = self._database.read(lambda connection: connection.execute(_DUE, asked).all())
        return [
            _sending_of(row, due_ms=until_ms, tries=row.tries + 1)
            for row in rows
            if self._taken(row, until_ms)
        ]

    def _taken(self, row: Columns, until_ms: int) -> bool:
        asked = {
            "of_subscription": row.subscription_id,
            "of_notice": row.notice_id,
            "seen": row.due_ms,
            "until": until_ms,
        }
        return (
            self._database.write(lambda connection: connection.execute(_TAKE, asked).rowcount) > 0
        )

    def tried(
        self, sending: Sending, *, due_ms: int | None, status: int | None, outcome: str
    ) -> None:
        asked = {
            "of_subscription": sending.subscription_id,
            "of_notice": sending.notice_id,
            "held": sending.due_ms,
            "then": due_ms,
            "with_status": status,
            "with_outcome": plain(outcome, "outcome"),
        }
        self._database.write(lambda connection: connection.execute(_TRIED, asked))

    def sendings(self, subscription_id: str, *, limit: int) -> list[Sending]:
        asked = {"of_subscription": subscription_id, "count": limit}
        rows = self._database.read(lambda connection: connection.execute(_LOG, asked).all())
        return [_sending_of(row, due_ms=row.due_ms, tries=row.tries) for row in rows]

    def again(self, subscription_id: str, notice_id: str, now_ms: int) -> bool:
        asked = {"of_subscription": subscription_id, "of_notice": notice_id, "now": now_ms}
        return self._database.write(
            lambda connection: connection.execute(_AGAIN, asked).rowcount > 0
        )

    def forget(self, before_ms: int, *, limit: int = 500) -> int:
        asked = {"before": before_ms, "count": limit}

        def work(connection: Connection) -> int:
            old = [
                {"of_subscription": row.subscription_id, "of_notice": row.notice_id}
                for row in connection.execute(_OLD, asked)
            ]
            if old:
                connection.execute(_DROP, old)
            return len(old) + connection.execute(_DROP_ENDED, {"before": before_ms}).rowcount

        return self._database.write(work)

    def _subscription_of(self, row: Columns) -> Subscription:
        return Subscription(
            id=row.id,
            repository_id=None if row.repository_id is None else RepositoryId(row.repository_id),
            url=row.url,
            secret=self._cipher.open(row.secret, row.id),
            kinds=tuple(NoticeKind(kind) for kind in unpack(row.kinds)),
            created_ms=row.created_ms,
        )


def _row(subscription_id: str, notice: Notice, body: bytes) -> dict[str, object]:
    return {
        "subscription_id": subscription_id,
        "notice_id": plain(notice.id, "id"),
        "kind": str(notice.kind),
        "body": body,
        "created_ms": notice.at_ms,
        "due_ms": notice.at_ms,
        "tries": 0,
        "status": None,
        "outcome": None,
    }


def _notice_of(row: Columns) -> Notice:
    return Notice(
        id=row.id,
        kind=NoticeKind(row.kind),
        repository_id=None if row.repository_id is None else RepositoryId(row.repository_id),
        at_ms=row.at_ms,
        detail=unpack(row.detail),
    )


def _sending_of(row: Columns, *, due_ms: int | None, tries: int) -> Sending:
    return Sending(
        subscription_id=row.subscription_id,
        notice_id=row.notice_id,
        kind=NoticeKind(row.kind),
        body=row.body,
        created_ms=row.created_ms,
        due_ms=due_ms,
        tries=tries,
        status=row.status,
        outcome=row.outcome,
    )
