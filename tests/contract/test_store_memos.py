"""Memos, in every store: found by scope and key, gone with their run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ci_platform.model import RepositoryId, RunId
from ci_platform.ports import Store
from ci_platform.shell import Memo, MemoLimits
from ci_platform.store import SqlStore, open_store
from ci_platform.testing import InMemoryStore
from tests.contract.conftest import KEY
from tests.contract.store_values import REPO, FakeClock, created, end

MAIN, BRANCH = "refs/heads/main", "refs/heads/b"
MEMO = Memo(RunId("run_one"), 1, "sh:build", {"layer": "l1", "outputs": {"v": "ü"}})


def test_the_first_scope_that_has_one_is_read(store: Store) -> None:
    created(store)
    store.memos.put(REPO, MAIN, "k", MEMO)
    assert store.memos.find(REPO, [BRANCH, MAIN], "k") == replace(MEMO, scope=MAIN)
    own = replace(MEMO, step="sh:own")
    store.memos.put(REPO, BRANCH, "k", own)
    assert store.memos.find(REPO, [BRANCH, MAIN], "k") == replace(own, scope=BRANCH)
    assert store.memos.find(REPO, [MAIN], "k") == replace(MEMO, scope=MAIN)


def test_keys_and_repositories_are_apart(store: Store) -> None:
    created(store)
    store.memos.put(REPO, MAIN, "k", MEMO)
    assert store.memos.find(REPO, [MAIN], "other") is None
    assert store.memos.find(REPO, [], "k") is None
    assert store.memos.find(RepositoryId("repo_b"), [MAIN], "k") is None


def test_a_newer_memo_takes_the_place_of_an_older(store: Store) -> None:
    created(store)
    created(store, "two")
    store.memos.put(REPO, MAIN, "k", MEMO)
    newer = Memo(RunId("run_two"), 2, "sh:build", {"layer": "l2"}, MAIN)
    store.memos.put(REPO, MAIN, "k", newer)
    assert store.memos.find(REPO, [MAIN], "k") == newer


def test_a_memo_of_a_run_that_is_gone_is_not_kept(store: Store) -> None:
    store.memos.put(REPO, MAIN, "k", MEMO)
    assert store.memos.find(REPO, [MAIN], "k") is None


def test_a_memo_goes_with_its_run(sql_store: SqlStore) -> None:
    """Whatever ends a run; here, deleting the repository's row would do the same."""
    created(sql_store)
    sql_store.memos.put(REPO, MAIN, "k", MEMO)
    with sql_store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    assert sql_store.memos.find(REPO, [MAIN], "k") is None


def taken_by_two(store: Store) -> Memo:
    found = store.memos.find(REPO, [MAIN], "k")
    assert found is not None
    taken = replace(found, run_id=RunId("run_two"), result={**found.result, "from_run": 1})
    assert store.memos.rehome(REPO, "k", found, taken)
    return found


def test_a_memo_that_is_taken_outlives_the_run_that_made_it(store: Store) -> None:
    one = created(store)
    created(store, "two")
    store.memos.put(REPO, MAIN, "k", MEMO)
    taken_by_two(store)
    end(store, one)
    store.runs.delete(one.id)
    found = store.memos.find(REPO, [MAIN], "k")
    assert found is not None
    assert (found.run_id, found.number, found.scope) == ("run_two", 2, MAIN)
    assert found.result == {**MEMO.result, "from_run": 1}


def test_a_memo_that_has_another_home_by_now_is_not_taken_again(store: Store) -> None:
    created(store)
    created(store, "two")
    store.memos.put(REPO, MAIN, "k", MEMO)
    before = taken_by_two(store)
    assert not store.memos.rehome(REPO, "k", before, before)
    assert not store.memos.rehome(REPO, "other", before, before)


def test_beyond_the_limit_what_was_used_longest_ago_goes(bounded: Store, clock: FakeClock) -> None:
    """Ten of them, or a hundred bytes."""
    created(bounded)
    for number in range(10):
        clock.advance(1)
        bounded.memos.put(REPO, MAIN, f"k{number}", MEMO)
    clock.advance(1)
    oldest = bounded.memos.find(REPO, [MAIN], "k0")
    assert oldest is not None
    assert bounded.memos.rehome(REPO, "k0", oldest, oldest)  # used
    clock.advance(1)
    bounded.memos.put(REPO, MAIN, "new", MEMO)
    kept = [n for n in range(10) if bounded.memos.find(REPO, [MAIN], f"k{n}")]
    assert kept == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    clock.advance(1)
    bounded.memos.put(REPO, MAIN, "large", replace(MEMO, size=90))
    clock.advance(1)
    bounded.memos.put(REPO, MAIN, "small", replace(MEMO, size=11))
    assert bounded.memos.find(REPO, [MAIN], "large") is None
    assert bounded.memos.find(REPO, [MAIN], "small")
    assert bounded.memos.find(REPO, [MAIN], "new") is None  # older than what was too much


def test_an_object_that_only_a_memo_refers_to_is_used_as_long_as_the_memo(store: Store) -> None:
    created(store)
    digest = "d" * 64
    store.memos.put(REPO, MAIN, "directory pip", replace(MEMO, digest=digest))
    assert store.runs.layers_used([digest, "e" * 64]) == {digest}
    store.memos.put(REPO, MAIN, "directory pip", replace(MEMO, digest="f" * 64))
    assert store.runs.layers_used([digest]) == set()


@pytest.fixture(params=["memory", "sqlite"])
def bounded(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[Store]:
    limits = MemoLimits(count=10, size=100)
    if request.param == "memory":
        yield InMemoryStore(clock, memo_limits=limits)
        return
    url = f"sqlite:///{tmp_path / 'bounded.db'}"
    with closing(open_store(url, clock=clock, key=KEY, memo_limits=limits)) as opened:
        yield opened
