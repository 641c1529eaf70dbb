"""Fetches and clones of the real git client, in all protocol versions: put together in the server,
in a process of its own, and by the git binary, always with the same result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import Limits
from tests.integration.git_world import GIT, GitWorld, Recorder

VERSIONS = ("0", "2")
ALL_VERSIONS = ("0", "1", "2")  # 1 is 0 with one line more


APART = Limits(process_objects=1)  # everything is put together in a process of its own
WAYS = {"here": (Limits(), None), "apart": (APART, None), "by git": (APART, GIT)}


@pytest.fixture(scope="module", params=WAYS)
def world(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[GitWorld]:
    limits, git = WAYS[request.param]
    world = GitWorld(tmp_path_factory.mktemp("git"), limits=limits, git=git)
    world.store.listen(Recorder())
    yield world
    world.close()


@pytest.fixture
def url(world: GitWorld, request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:90].strip("-")
    return world.create(f"acme/{name}")


@pytest.fixture
def work(world: GitWorld, url: str) -> Path:
    """A history with a branch, a merge, a revert and tags, pushed in three packs."""
    path = world.work(f"work-{url.rsplit('/', 1)[1]}", url)
    for number in range(4):
        files: dict[str, str | bytes] = {"a.txt": f"{number}\n", f"d/e/{number}.txt": "x" * number}
        world.commit(path, files, f"commit {number}")
    world.git("push", "-q", "origin", "main", cwd=path)
    world.git("checkout", "-q", "-b", "topic", "HEAD~2", cwd=path)
    world.commit(path, {"t.txt": "topic"}, "topic")
    world.git("tag", "-a", "-m", "a tag", "v1", cwd=path)
    world.git("push", "-q", "origin", "topic", "v1", cwd=path)
    world.git("checkout", "-q", "main", cwd=path)
    world.git("merge", "-q", "-m", "merge", "topic", cwd=path)
    world.git("revert", "--no-edit", "-m", "1", "HEAD", cwd=path)
    world.git("push", "-q", "origin", "main", cwd=path)
    return path


def protocol(version: str) -> tuple[str, str]:
    return "-c", f"protocol.version={version}"


def count(world: GitWorld, cwd: Path) -> int:
    return int(world.git("rev-list", "--count", "HEAD", cwd=cwd))


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_clone_is_whole(world: GitWorld, url: str, work: Path, version: str) -> None:
    clone = work.with_name(f"{work.name}-clone")
    world.git(*protocol(version), "clone", "-q", url, clone.name)
    world.fsck(clone)
    assert world.head(clone) == world.head(work)
    assert world.head(clone, "v1") == world.head(work, "v1")
    assert world.git("symbolic-ref", "HEAD", cwd=clone) == "refs/heads/main\n"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_fetch_brings_what_is_new(world: GitWorld, url: str, work: Path, version: str) -> None:
    clone = world.clone(url, f"{work.name}-clone")
    for number in range(3):
        world.commit(work, {"a.txt": f"new {number}", f"n/{number}": "y"})
    world.git("tag", "-a", "-m", "x", "v2", cwd=work)
    world.git("push", "-q", "origin", "main", "v2", cwd=work)
    world.commit(clone, {"local.txt": "only here"})
    world.git(*protocol(version), "fetch", "-q", "origin", cwd=clone)
    world.fsck(clone)
    assert world.head(clone, "origin/main") == world.head(work)
    assert world.head(clone, "v2^{}") == world.head(work), "an annotated tag follows its commit"
    world.git(*protocol(version), "fetch", "-q", "origin", cwd=clone)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_repository_can_be_cloned(world: GitWorld, url: str, version: str) -> None:
    world.git(*protocol(version), "clone", "-q", url, f"empty-{version}")
    if version == "2":
        head = world.git("symbolic-ref", "HEAD", cwd=f"empty-{version}")
        assert head == "refs/heads/main\n"


def test_the_unborn_default_branch_is_told(world: GitWorld, url: str) -> None:
    full_name = url.rsplit("/", 1)[1].removesuffix(".git")
    repository = world.store.repositories.get("acme", full_name)
    world.store.repositories.set_default_branch(repository.id, "trunk")
    clone = world.clone(url, f"trunk-{full_name}")
    assert world.git("symbolic-ref", "HEAD", cwd=clone) == "refs/heads/trunk\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_shallow_clones_deepen_and_become_whole(
    world: GitWorld, url: str, work: Path, version: str
) -> None:
    clone = work.with_name(f"{work.name}-shallow")
    p = protocol(version)
    world.git(*p, "clone", "-q", "--depth=1", url, clone.name)
    world.fsck(clone)
    assert count(world, clone) == 1
    world.git(*p, "fetch", "-q", "--depth=2", cwd=clone)
    assert count(world, clone) == 2
    world.git(*p, "fetch", "-q", "--deepen=1", cwd=clone)
    world.fsck(clone)
    assert count(world, clone) > 2
    world.commit(work, {"new.txt": "n"})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.git(*p, "pull", "-q", cwd=clone)
    world.fsck(clone)
    world.git(*p, "fetch", "-q", "--unshallow", cwd=clone)
    world.fsck(clone)
    assert count(world, clone) == count(world, work)
    assert not (clone / ".git/shallow").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_history_can_be_cut_by_time_and_by_ref(
    world: GitWorld, url: str, version: str, tmp_path: Path
) -> None:
    work = world.work(f"dated-{version}", url)
    for day in range(1, 6):
        (work / "a.txt").write_text(str(day))
        world.git("add", "-A", cwd=work)
        when = f"2024-01-0{day}T12:00:00Z"
        world.git(
            "commit",
            "-qm",
            f"day {day}",
            cwd=work,
            env=f"GIT_AUTHOR_DATE={when} GIT_COMMITTER_DATE={when}",
        )
        world.git("tag", f"day{day}", cwd=work)
    world.git("push", "-q", "origin", "main", "--tags", cwd=work)
    p = protocol(version)
    world.git(*p, "clone", "-q", "--shallow-since=2024-01-03T00:00:00Z", url, f"since-{version}")
    assert count(world, Path(f"since-{version}")) == 3
    world.fsck(f"since-{version}")
    world.git(*p, "clone", "-q", "--shallow-exclude=day3", url, f"not-{version}")
    assert count(world, Path(f"not-{version}")) == 2
    output = world.git(
        *p, "clone", "-q", "--shallow-since=2030-01-01", url, f"none-{version}", ok=False
    )
    assert "no commits selected for shallow requests" in output


@pytest.mark.parametrize(
    ("version", "filtered"),
    [
        ("0", "blob:none"),
        ("2", "blob:none"),
        ("2", "blob:limit=3"),
        ("0", "tree:0"),
        ("2", "tree:2"),
    ],
)
def test_partial_clones_fetch_the_rest_when_it_is_needed(
    world: GitWorld, url: str, work: Path, version: str, filtered: str
) -> None:
    p = protocol(version)
    clone = work.with_name(f"{work.name}-partial")
    world.git(*p, "clone", "-q", "--no-checkout", f"--filter={filtered}", url, clone.name)
    missing = world.git("rev-list", "--objects", "--all", "--missing=print", cwd=clone)
    assert "\n?" in f"\n{missing}"
    world.git(*p, "checkout", "-q", "main", cwd=clone)
    assert (clone / "a.txt").read_text() == "3\n"
    world.git(*p, "log", "-p", "--stat", cwd=clone)
    world.commit(work, {"a.txt": "later"})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.git(*p, "pull", "-q", cwd=clone)
    assert (clone / "a.txt").read_text() == "later"


def test_an_unknown_filter_is_refused_in_words(world: GitWorld, url: str, work: Path) -> None:
    output = world.git("clone", "--filter=sparse:oid=main:x", url, "sparse", ok=False)
    assert "is not supported" in output


@pytest.mark.parametrize("version", VERSIONS)
def test_a_commit_can_be_fetched_by_its_id(
    world: GitWorld, url: str, work: Path, version: str
) -> None:
    old = world.head(work, "main~3")
    clone = world.work(f"{work.name}-by-id", url)
    world.git(*protocol(version), "fetch", "-q", "--depth=1", "origin", old, cwd=clone)
    assert world.head(clone, "FETCH_HEAD") == old
    world.fsck(clone)
    output = world.git("fetch", "origin", "1" * 40, cwd=clone, ok=False)
    assert f"not our ref {'1' * 40}" in output


def test_what_a_deleted_branch_held_is_not_cloned(world: GitWorld, url: str, work: Path) -> None:
    world.git("checkout", "-q", "-b", "mistake", cwd=work)
    mistake = world.commit(work, {"password.txt": "hunter2"})
    world.git("push", "-q", "origin", "mistake", cwd=work)
    world.git("push", "-q", "origin", ":mistake", cwd=work)
    clone = world.clone(url, f"{work.name}-clone", "--mirror")
    world.fsck(clone)
    world.git("cat-file", "-e", mistake, cwd=clone, ok=False)
    output = world.git("fetch", "origin", mistake, cwd=clone, ok=False)
    assert f"not our ref {mistake}" in output


def test_refs_are_listed_by_prefix(world: GitWorld, url: str, work: Path) -> None:
    output = world.git("ls-remote", url, "refs/tags/*")
    assert "refs/tags/v1^{}" in output and "refs/heads" not in output
    assert "refs/heads/topic" in world.git("ls-remote", "--heads", url)


@pytest.mark.parametrize("version", ["0", "2"])
def test_a_blob_of_many_megabytes_comes_back(
    world: GitWorld, url: str, version: str, tmp_path: Path
) -> None:
    work = world.work(f"blob-{version}", url)
    content = bytes(range(256)) * (12 << 12)  # 12 MiB
    world.commit(work, {"large.bin": content, "small.txt": "s"})
    world.git("push", "-q", "origin", "main", cwd=work)
    clone = work.with_name(f"{work.name}-clone")
    world.git(*protocol(version), "clone", "-q", url, clone.name)
    assert (clone / "large.bin").read_bytes() == content


def test_a_fork_has_what_its_parent_had_and_no_more(world: GitWorld, url: str, work: Path) -> None:
    name = url.rsplit("/", 1)[1].removesuffix(".git")
    parent = world.store.repositories.get("acme", name)
    fork = world.store.repositories.fork(parent.id, "forks", name)
    fork_url = world.url(f"forks/{name}")
    clone = world.clone(fork_url, f"{work.name}-fork")
    world.fsck(clone)
    assert world.head(clone) == world.head(work)
    later = world.commit(work, {"later.txt": "l"})
    world.git("push", "-q", "origin", "main", cwd=work)
    assert "not our ref" in world.git("fetch", fork_url, later, cwd=clone, ok=False)
    world.store.repositories.delete(parent.id)
    world.store.sweep(grace_ms=0)
    world.fsck(world.clone(fork_url, f"{work.name}-fork-2"))
    assert world.store.repositories.by_id(fork.id).full_name == f"forks/{name}"
