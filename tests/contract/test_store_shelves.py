"""The rows of repositories' own databases: the same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ci_platform.model import RepositoryId
from ci_platform.ports import Store
from ci_platform.ports.granting import Shelved

A, B = RepositoryId("repo_a"), RepositoryId("repo_b")


def test_a_state_follows_the_one_it_was_made_from(store: Store) -> None:
    shelves = store.shelves
    assert shelves.get(A, "sql") is None
    assert shelves.move(A, "sql", version=1, to="too soon") is None
    assert shelves.move(A, "sql", version=0, to="one") == Shelved(1, "one")
    assert shelves.move(A, "sql", version=0, to="also one") is None
    assert shelves.move(A, "sql", version=1, to="two") == Shelved(2, "two")
    assert shelves.get(A, "sql") == Shelved(2, "two")
    assert shelves.get(A, "kv") is None
    assert shelves.get(B, "sql") is None


def test_of_many_that_move_the_same_state_one_does(store: Store) -> None:
    for version in range(3):
        with ThreadPoolExecutor(8) as threads:
            moves = [
                threads.submit(store.shelves.move, A, "sql", version=version, to=f"{version}-{n}")
                for n in range(8)
            ]
        moved = [move.result() for move in moves if move.result() is not None]
        assert moved == [store.shelves.get(A, "sql")]


def test_a_removed_repository_tells_its_objects_once(store: Store) -> None:
    store.shelves.move(A, "sql", version=0, to="a")
    store.shelves.move(A, "kv", version=0, to="b")
    store.shelves.move(B, "sql", version=0, to="c")
    assert sorted(store.shelves.remove(A)) == ["a", "b"]
    assert store.shelves.remove(A) == []
    assert store.shelves.get(B, "sql") == Shelved(1, "c")
