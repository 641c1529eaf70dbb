"""The .git of a checkout, as a real git client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import ObjectNotFound, OverLimit, history
from tests.integration.git_world import GitWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path)
    yield world
    world.close()


@pytest.fixture
def commits(world: GitWorld) -> list[str]:
    """Four commits, oldest first, pushed."""
    work = world.work("work", world.create())
    found = [world.commit(work, {"a.txt": f"{n}\n", f"dir/{n}": "x"}) for n in range(4)]
    world.git("push", "-q", "origin", "main", cwd=work)
    return found


def checkout(world: GitWorld, sha: str, into: Path, depth: int) -> Path:
    repository = world.store.repositories.get("acme", "app")
    into.mkdir()
    world.store.files(repository.id).export(sha, into)
    world.store.files(repository.id).history(sha, into, depth=depth)
    return into


@pytest.mark.parametrize(("depth", "seen"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_a_checkout_has_as_much_history_as_is_asked_for(
    world: GitWorld, commits: list[str], tmp_path: Path, depth: int, seen: int
) -> None:
    place = checkout(world, commits[-1], tmp_path / "out", depth)
    log = world.git("log", "--format=%H", cwd=place).split()
    assert log == commits[::-1][:seen]
    assert world.git("status", "--porcelain", cwd=place) == ""
    world.git("fsck", "--strict", cwd=place)
    assert (place / ".git/shallow").exists() == (seen < 4)


def test_git_works_in_it(world: GitWorld, commits: list[str], tmp_path: Path) -> None:
    place = checkout(world, commits[-1], tmp_path / "out", 2)
    assert "a.txt" in world.git("diff", "--name-only", "HEAD~1", cwd=place)
    (place / "a.txt").write_text("new\n")
    assert world.git("status", "--porcelain", cwd=place).strip() == "M a.txt"
    assert world.git("describe", "--always", cwd=place).strip() in commits[-1]
    world.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "x", cwd=place)


def test_what_is_not_there_or_too_much_is_refused(
    world: GitWorld, commits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ObjectNotFound):
        checkout(world, "0" * 40, tmp_path / "none", 1)
    monkeypatch.setattr(history, "HISTORY_OBJECTS_MAX", 2)
    with pytest.raises(OverLimit, match="the last 3 commits have more than 2 objects"):
        checkout(world, commits[-1], tmp_path / "many", 3)
