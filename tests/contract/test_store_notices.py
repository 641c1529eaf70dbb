"""Notices and who hears of them, the same on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ci_platform.model import RepositoryId
from ci_platform.ports.identity import Token
from ci_platform.ports.telling import Notice, NoticeKind, Subscription
from ci_platform.store import SqlStore
from ci_platform.store.notices import write_notices
from tests.contract.conftest import OpenStore

A, B = RepositoryId("repo_a"), RepositoryId("repo_b")


@pytest.fixture
def store(open_sql_store: OpenStore) -> Iterator[SqlStore]:
    yield open_sql_store()


def notice(
    number: int, kind: NoticeKind = NoticeKind.FORKED, of: RepositoryId | None = A
) -> Notice:
    return Notice(f"evt_{number}", kind, of, 1000 + number, {"name": "ü", "number": number})


def write(store: SqlStore, *notices: Notice) -> None:
    with store.engine.begin() as connection:
        write_notices(connection, notices)


def subscribe(
    store: SqlStore, name: str, of: RepositoryId | None, *kinds: NoticeKind
) -> Subscription:
    made = Subscription(name, of, "https://example.org", b"s3cret", kinds or tuple(NoticeKind), 1)
    store.notices.subscribe(made)
    return made


def test_a_notice_is_spread_to_whom_it_concerns_and_leaves_the_outbox(store: SqlStore) -> None:
    for name, of in (("a", A), ("b", B), ("all", None)):
        subscribe(store, name, of)
    subscribe(store, "other", A, NoticeKind.IMPORTED)
    write(store, notice(1), notice(2, NoticeKind.CREATED, None))
    first, second = store.notices.pending()
    assert (first, second) == (notice(1), notice(2, NoticeKind.CREATED, None))
    assert store.notices.spread([(first, b"{}")]) == 2
    assert store.notices.spread([(first, b"{}")]) == 0, "twice is as good as once"
    assert store.notices.spread([(second, b"{}")]) == 1
    assert store.notices.pending() == []
    names = [one.subscription_id for one in store.notices.take(5000, until_ms=9000, limit=10)]
    assert sorted(names) == ["a", "all", "all"]


def test_many_are_spread_in_one_transaction(store: SqlStore) -> None:
    subscribe(store, "a", A, NoticeKind.FORKED)
    subscribe(store, "all", None, NoticeKind.CREATED)
    made = [notice(n, NoticeKind.CREATED, B) for n in range(1000, 1100)]
    write(store, *made, notice(1200), notice(1201))
    told = [(one, b"%d" % number) for number, one in enumerate(store.notices.pending(limit=101))]
    assert store.notices.spread(told) == 101
    assert [one.id for one in store.notices.pending()] == ["evt_1201"]
    assert len(store.notices.sendings("all", limit=500)) == 100
    assert len(store.notices.sendings("a", limit=500)) == 1


def test_one_notice_spread_by_many_is_sent_once(open_sql_store: OpenStore) -> None:
    stores = [open_sql_store() for _ in range(4)]
    subscribe(stores[0], "a", A)
    write(stores[0], notice(1))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda one: one.notices.spread([(notice(1), b"{}")]), stores))
        assert sum(made) == 1
        taken = list(pool.map(lambda s: s.notices.take(5000, until_ms=9000, limit=9), stores))
    assert sum(map(len, taken)) == 1


def test_a_transaction_that_fails_tells_nobody(store: SqlStore) -> None:
    with pytest.raises(RuntimeError), store.engine.begin() as connection:
        write_notices(connection, [notice(1)])
        raise RuntimeError
    assert store.notices.pending() == []


def test_a_sending_is_tried_until_it_ends_and_may_be_sent_again(store: SqlStore) -> None:
    subscribe(store, "a", A)
    write(store, notice(1))
    store.notices.spread([(notice(1), b"body")])
    (first,) = store.notices.take(2000, until_ms=3000, limit=1)
    assert (first.body, first.tries, first.due_ms) == (b"body", 1, 3000)
    assert store.notices.take(2999, until_ms=4000, limit=1) == []
    store.notices.tried(first, due_ms=2500, status=500, outcome="HTTP 500")
    (second,) = store.notices.take(2500, until_ms=4000, limit=1)
    store.notices.tried(first, due_ms=None, status=200, outcome="not its turn")
    store.notices.tried(second, due_ms=None, status=200, outcome="delivered")
    (ended,) = store.notices.sendings("a", limit=5)
    assert (ended.due_ms, ended.tries, ended.outcome) == (None, 2, "delivered")
    assert store.notices.again("a", ended.notice_id, 9000)
    assert not store.notices.again("a", "evt_x", 9000)
    assert len(store.notices.take(9000, until_ms=9500, limit=5)) == 1


def test_a_deleted_repository_s_subscriptions_hear_of_it_and_then_go(store: SqlStore) -> None:
    subscribe(store, "a", A)
    gone = notice(1, NoticeKind.DELETED)
    write(store, gone, notice(2))
    assert store.notices.spread([(gone, b"{}")]) == 1
    assert store.notices.spread([(notice(2), b"{}")]) == 0, "it has ended"
    assert store.notices.forget(9000) == 0, "something is on its way"
    (last,) = store.notices.take(2000, until_ms=3000, limit=1)
    store.notices.tried(last, due_ms=None, status=200, outcome="delivered")
    assert store.notices.forget(9000) == 2
    assert store.notices.subscription("a") is None


def test_a_secret_lies_nowhere_in_the_clear(store: SqlStore) -> None:
    made = subscribe(store, "a", A, NoticeKind.PUSHED, NoticeKind.FORKED)
    assert store.notices.subscription("a") == made
    assert store.notices.subscriptions(A) == [made] and store.notices.subscriptions(None) == []
    with store.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT * FROM subscriptions").all()
    assert not any("s3cret" in repr(value) for value in row)
    store.notices.unsubscribe("a")
    assert store.notices.subscriptions(A) == []


def test_a_token_s_coming_and_going_are_notices_without_its_secret(store: SqlStore) -> None:
    token = Token("tok_1", "ci", None, frozenset({"read"}), A, 1000, None, None)
    store.identity.add_token(token, "digest-of-the-secret")
    store.identity.revoke_token("tok_1")
    store.identity.revoke_token("tok_1")
    made, gone = store.notices.pending()
    assert (made.kind, gone.kind) == (NoticeKind.TOKEN_CREATED, NoticeKind.TOKEN_REVOKED)
    assert made.repository_id == A and made.detail["scopes"] == ["read"]
    assert "digest" not in repr(made)
