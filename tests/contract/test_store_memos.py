"""Memos, in every store: found by scope and key, gone with their run."""

from __future__ import annotations

from dataclasses import replace

from ci_platform.model import RepositoryId, RunId
from ci_platform.ports import Store
from ci_platform.shell import Memo
from ci_platform.store import SqlStore
from tests.contract.store_values import REPO, created

MAIN, BRANCH = "refs/heads/main", "refs/heads/b"
MEMO = Memo(RunId("run_one"), 1, "sh:build", {"layer": "l1", "outputs": {"v": "ü"}})


def test_the_first_scope_that_has_one_is_read(store: Store) -> None:
    created(store)
    store.memos.put(REPO, MAIN, "k", MEMO)
    assert store.memos.find(REPO, [BRANCH, MAIN], "k") == MEMO
    own = replace(MEMO, step="sh:own")
    store.memos.put(REPO, BRANCH, "k", own)
    assert store.memos.find(REPO, [BRANCH, MAIN], "k") == own
    assert store.memos.find(REPO, [MAIN], "k") == MEMO


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
    newer = Memo(RunId("run_two"), 2, "sh:build", {"layer": "l2"})
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
