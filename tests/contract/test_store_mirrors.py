"""Mirrors on both databases: one of many takes a due one, and no call to hurry is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ci_platform.model import RepositoryId
from ci_platform.ports.mirroring import Mirror
from ci_platform.store import SqlStore
from tests.contract.conftest import OpenStore

A, B = RepositoryId("repo_a"), RepositoryId("repo_b")
MIRROR = Mirror(A, "https://example.org/a.git", "git", "s3cret-ü", every_ms=60_000, next_ms=1000)


@pytest.fixture
def store(open_sql_store: OpenStore) -> Iterator[SqlStore]:
    yield open_sql_store()


def test_a_mirror_is_kept_replaced_and_removed(store: SqlStore) -> None:
    assert store.mirrors.get(A) is None
    store.mirrors.put(MIRROR)
    assert store.mirrors.get(A) == MIRROR
    other = replace(MIRROR, url="https://example.org/b.git", password=None, username=None)
    store.mirrors.put(other)
    assert store.mirrors.get(A) == other
    assert store.mirrors.remove(A) and not store.mirrors.remove(A)
    assert store.mirrors.get(A) is None


def test_a_password_lies_nowhere_in_the_clear(store: SqlStore) -> None:
    store.mirrors.put(MIRROR)
    with store.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT * FROM mirrors").all()
    assert not any("s3cret" in repr(value) for value in row)


def test_what_is_due_is_taken_by_one_of_many(open_sql_store: OpenStore) -> None:
    stores = [open_sql_store() for _ in range(4)]
    stores[0].mirrors.put(MIRROR)
    stores[0].mirrors.put(replace(MIRROR, repository_id=B, next_ms=3000))
    assert stores[0].mirrors.take(999, until_ms=5000, limit=10) == []
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda s: s.mirrors.take(1000, until_ms=5000, limit=10), stores))
    assert [one.repository_id for some in taken for one in some] == [A]


def test_one_whose_process_died_is_due_again_when_its_time_is_over(store: SqlStore) -> None:
    store.mirrors.put(MIRROR)
    (dead,) = store.mirrors.take(1000, until_ms=5000, limit=10)
    assert store.mirrors.take(4999, until_ms=9000, limit=10) == []
    (mine,) = store.mirrors.take(5000, until_ms=9000, limit=10)
    store.mirrors.done(dead, 6000, next_ms=66_000, outcome="too late", worked=True)
    assert store.mirrors.get(A) == replace(mine, next_ms=9000), "it is not the dead one's any more"
    store.mirrors.done(mine, 6000, next_ms=66_000, outcome="2 moved", worked=True)
    found = store.mirrors.get(A)
    assert found is not None
    assert (found.held_ms, found.next_ms, found.synced_ms) == (0, 66_000, 6000)


def test_failures_are_counted_until_it_works_again(store: SqlStore) -> None:
    store.mirrors.put(MIRROR)
    for number in range(2):
        (mine,) = store.mirrors.take(1000 + number, until_ms=5000, limit=1)
        store.mirrors.done(mine, 1000, next_ms=1001, outcome="away", worked=False)
    found = store.mirrors.get(A)
    assert found is not None
    assert (found.tries, found.outcome, found.synced_ms) == (2, "away", None)
    (mine,) = store.mirrors.take(2000, until_ms=5000, limit=1)
    store.mirrors.done(mine, 2000, next_ms=None, outcome="fine", worked=True)
    found = store.mirrors.get(A)
    assert found is not None and (found.tries, found.next_ms) == (0, None)
    assert store.mirrors.take(10**15, until_ms=10**15, limit=1) == [], "only when it is told to"


def test_a_call_to_hurry_while_it_is_in_hand_makes_it_due_again(store: SqlStore) -> None:
    assert not store.mirrors.hasten(A, 1)
    store.mirrors.put(replace(MIRROR, every_ms=None, next_ms=None))
    assert store.mirrors.hasten(A, 1000)
    (mine,) = store.mirrors.take(1000, until_ms=9000, limit=1)
    assert store.mirrors.hasten(A, 1500)
    assert store.mirrors.take(1500, until_ms=9000, limit=1) == [], "it is in hand"
    store.mirrors.done(mine, 1600, next_ms=None, outcome="fine", worked=True)
    assert len(store.mirrors.take(1600, until_ms=9000, limit=1)) == 1
