"""Clones that are there already, cut and deepened in every way: each becomes what
`git http-backend` makes of it."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.git_world import GitWorld

CLONES = {
    "whole": (),
    "of depth 2": ("--depth=2",),
    "since a day": ("--shallow-since=2024-01-05T00:00:00Z",),
    "without a tag's history": ("--shallow-exclude=day2",),
}
FETCHES = [
    (),
    ("--depth=1",),
    ("--depth=3",),
    ("--deepen=1",),
    ("--deepen=3",),
    ("--unshallow",),
    ("--shallow-since=2024-01-03T00:00:00Z",),
    ("--shallow-since=2024-01-06T12:00:00Z",),
    ("--shallow-since=2030-01-01T00:00:00Z",),
    ("--shallow-exclude=day2",),
    ("--shallow-exclude=day5",),
    ("--shallow-exclude=nowhere",),
    ("--shallow-exclude=day2", "--shallow-exclude=side"),
    ("--shallow-since=2024-01-03T00:00:00Z", "--shallow-exclude=day4"),
    ("--depth=2", "--shallow-since=2024-01-03T00:00:00Z"),
    ("--deepen=1", "--shallow-exclude=day2"),
]
CASES = [
    (kind, options, version)
    for (kind, options), version in zip(
        itertools.product(CLONES, FETCHES), itertools.cycle("200202")
    )
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path_factory.mktemp("git"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def theirs(world: GitWorld) -> Iterator[str]:
    """What git itself serves of the same directory."""
    command = [sys.executable, "-m", "bench.git_peer", str(world.directory)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{int(child.stdout.readline())}/theirs.git"
        child.kill()


@pytest.fixture(scope="module")
def remotes(world: GitWorld, theirs: str) -> dict[str, str]:
    """A commit a day and a branch that is merged, on both servers; each has moved on since it was
    cloned."""
    work = world.work("work")
    for day in range(1, 10):
        moment = f"2024-01-{day:02}T12:00:00Z"
        env = f"GIT_COMMITTER_DATE={moment} GIT_AUTHOR_DATE={moment}"
        if day == 4:
            world.git("checkout", "-q", "-b", "side", "main~1", cwd=work)
        elif day > 1:
            world.git("checkout", "-q", "side" if day == 6 else "main", cwd=work)
        (work / f"{day}.txt").write_text(f"{day}\n")
        world.git("add", "-A", cwd=work)
        world.git("commit", "-q", "-m", str(day), cwd=work, env=env)
        if day == 7:
            world.git("merge", "-q", "--no-ff", "-m", "merge", "side", cwd=work, env=env)
        world.git("tag", *(["-am", "tag"] if day % 2 else []), f"day{day}", cwd=work, env=env)
    world.git("clone", "-q", "--bare", work.name, "theirs.git")
    world.git("config", "http.receivepack", "true", cwd="theirs.git")
    found = {"ours": world.create(), "theirs": theirs}
    for name, url in found.items():
        everything = ["+main~1:refs/heads/main", "side", "--tags"]
        world.git("push", "-q", url, *everything, cwd=work)
        for kind, options in CLONES.items():
            world.git("clone", "-q", *options, url, f"{name} {kind}")
        world.git("push", "-q", url, "main", cwd=work)
    return found


@pytest.mark.parametrize(
    ("kind", "options", "version"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "plainly",
)
def test_a_clone_becomes_what_git_makes_of_it(
    world: GitWorld, remotes: dict[str, str], kind: str, options: tuple[str, ...], version: str
) -> None:
    seen = {name: fetched(world, f"{name} {kind}", options, version) for name in remotes}
    assert seen["ours"] == seen["theirs"]


def fetched(
    world: GitWorld, kept: str, options: tuple[str, ...], version: str
) -> tuple[object, ...]:
    """A copy of a clone after a fetch: its exit status, commits, where it is cut, refs."""
    clone = world.directory / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    shutil.copytree(world.directory / kept, clone)
    command = ["git", "-c", f"protocol.version={version}", "fetch", "-q", *options]
    status = subprocess.run(command, cwd=clone, capture_output=True, check=False).returncode
    world.fsck(clone)
    commits = sorted(world.git("rev-list", "--all", cwd=clone).split())
    return status, commits, cut(world, clone), world.git("for-each-ref", cwd=clone)


def cut(world: GitWorld, clone: Path) -> list[str]:
    """The commits that have parents the clone lacks. (git's server also names the very first
    commit, when it lies at the depth that was asked for.)"""
    file = clone / ".git" / "shallow"
    named = file.read_text().split() if file.exists() else []
    return sorted(
        sha for sha in named if "\nparent " in world.git("cat-file", "commit", sha, cwd="work")
    )
