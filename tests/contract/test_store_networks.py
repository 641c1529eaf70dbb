"""The hosts that repositories allow their commands: the same on every store."""

from __future__ import annotations

from ci_platform.model import RepositoryId
from ci_platform.ports import Store

A, B = RepositoryId("repo_a"), RepositoryId("repo_b")


def test_a_list_is_kept_replaced_and_removed(store: Store) -> None:
    assert store.networks.get(A) is None
    store.networks.put(A, ["pypi.org", "*.example.org:8443"])
    assert store.networks.get(A) == ("pypi.org", "*.example.org:8443")
    store.networks.put(A, ["npmjs.org"])
    assert store.networks.get(A) == ("npmjs.org",)
    assert store.networks.remove(A) and not store.networks.remove(A)
    assert store.networks.get(A) is None


def test_an_empty_list_is_not_none_and_of_one_repository(store: Store) -> None:
    store.networks.put(A, [])
    assert store.networks.get(A) == ()
    assert store.networks.get(B) is None
