"""The cache of loaded sources; loading itself is tried over a real git store."""

from __future__ import annotations

from ci_platform.model import RepositoryId, SourceFiles
from ci_platform.source import SourceCache

HERE = RepositoryId("repo_here")


def source(commit: str, size: int = 1000, repository_id: RepositoryId = HERE) -> SourceFiles:
    return SourceFiles(repository_id, commit, {"a.py": "x" * size}, commit)


def test_a_source_is_found_by_repository_and_commit() -> None:
    cache = SourceCache()
    cache.put(source("1"))
    assert cache.get(HERE, "1") == source("1")
    assert cache.get(HERE, "2") is None
    assert cache.get("repo_there", "1") is None


def test_the_source_used_longest_ago_goes_first() -> None:
    cache = SourceCache(bytes_max=3000)
    cache.put(source("1"))
    cache.put(source("2"))
    assert cache.get(HERE, "1") is not None
    cache.put(source("3"))
    assert cache.get(HERE, "2") is None
    assert cache.get(HERE, "1") is not None and cache.get(HERE, "3") is not None


def test_a_source_larger_than_the_cache_is_not_kept() -> None:
    cache = SourceCache(bytes_max=3000)
    cache.put(source("1"))
    cache.put(source("2", size=10_000))
    assert cache.get(HERE, "2") is None and cache.get(HERE, "1") is not None


def test_the_same_source_is_counted_once() -> None:
    cache = SourceCache(bytes_max=3000)
    for _ in range(10):
        cache.put(source("1"))
    cache.put(source("2"))
    assert cache.get(HERE, "1") is not None
