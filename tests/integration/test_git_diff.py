"""Differences as text: `git apply` is the judge of every one of them."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import FileDiff, GitStore, Limits, OverLimit
from tests.integration.git_world import GitWorld

NAMES = ["a.txt", "dir/b.txt", "dir/deep/c.txt", 'odd "name"\t.txt', "with space.txt", "é.txt"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path)
    yield world
    world.close()


def pushed(world: GitWorld, work: Path) -> str:
    world.git("push", "-qf", "origin", "HEAD:refs/heads/main", cwd=work)
    return world.head(work)


def diff(store: GitStore, before: str | None, after: str) -> tuple[list[FileDiff], bool]:
    repository = store.repositories.get("acme", "app")
    found, more = store.files(repository.id).diff(before, after)
    return list(found), more


def applied(world: GitWorld, work: Path, before: str, found: list[FileDiff]) -> str:
    """The tree that git makes of `before` with our text."""
    world.git("checkout", "-qf", before, cwd=work)
    text = b"".join(one.text or b"" for one in found)
    done = subprocess.run(
        ["git", "apply", "--index", "--whitespace=nowarn", "-"],
        cwd=work,
        input=text,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, (done.stderr, text)
    return world.git("write-tree", cwd=work).strip()


def write(work: Path, name: str, content: bytes) -> None:
    path = work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def scribble(chance: random.Random, work: Path) -> None:
    """Change some files: lines, ends of lines, modes, names, kinds."""
    for name in chance.sample(NAMES, 3):
        path = work / name
        what = chance.choice(["write", "edit", "edit", "delete", "move", "mode", "link", "end"])
        if what == "write" or not path.exists() or path.is_symlink():
            path.unlink(missing_ok=True)
            lines = [b"%d" % chance.randrange(40) for _ in range(chance.randrange(60))]
            write(work, name, b"\n".join(lines))
        elif what == "edit":
            lines = path.read_bytes().split(b"\n")
            for _ in range(chance.randrange(1, 5)):
                at = chance.randrange(len(lines) + 1)
                lines[at : at + chance.randrange(3)] = [b"new \r %d" % chance.randrange(9)]
            write(work, name, b"\n".join(lines))
        elif what == "delete":
            path.unlink()
        elif what == "move":
            target = work / f"moved-{chance.randrange(100)}.txt"
            target.unlink(missing_ok=True)
            path.rename(target)
        elif what == "mode":
            path.chmod(path.stat().st_mode ^ 0o111)
        elif what == "link":
            path.unlink()
            path.symlink_to("a.txt")
        else:
            write(work, name, path.read_bytes() + b"\n")


@pytest.mark.parametrize("seed", range(3))
def test_git_applies_the_text_of_random_changes(world: GitWorld, seed: int) -> None:
    chance = random.Random(seed)
    work = world.work("work", world.create())
    commits = []
    for _ in range(8):
        scribble(chance, work)
        world.commit(work, {})
        commits.append(pushed(world, work))
    for before, after in zip(commits, commits[1:], strict=False):
        found, more = diff(world.store, before, after)
        assert not more
        tree = applied(world, work, before, found)
        assert tree == world.head(work, f"{after}^{{tree}}")
    first, last = commits[0], commits[-1]
    found, _ = diff(world.store, first, last)
    assert applied(world, work, first, found) == world.head(work, f"{last}^{{tree}}")


def test_renames_modes_binaries_and_counts_are_named(world: GitWorld) -> None:
    work = world.work("work", world.create())
    lines = "".join(f"line {number}\n" for number in range(50))
    world.commit(work, {"same": "same\n", "old": lines, "bin": b"a\0b", "plain": "1\n2\n"})
    before = pushed(world, work)
    for source, target in (("same", "kept"), ("old", "new")):
        world.git("mv", source, target, cwd=work)
    (work / "plain").chmod(0o755)
    world.commit(work, {"new": lines.replace("line 7\n", "seven\n"), "bin": b"a\0c", "add": "x"})
    after = pushed(world, work)
    found = {one.path: one for one in diff(world.store, before, after)[0]}
    assert {path: one.status for path, one in found.items()} == {
        "add": "added",
        "bin": "modified",
        "kept": "renamed",
        "new": "renamed",
        "plain": "modified",
    }
    assert (found["kept"].old_path, found["new"].old_path) == ("same", "old")
    assert (found["new"].additions, found["new"].deletions) == (1, 1)
    assert found["bin"].binary and b"Binary files a/bin and b/bin differ" in (
        found["bin"].text or b""
    )
    assert found["plain"].text == (
        b"diff --git a/plain b/plain\nold mode 100644\nnew mode 100755\n"
    )
    assert b"+x\n\\ No newline at end of file\n" in (found["add"].text or b"")
    everything, _ = diff(world.store, None, before)
    assert [one.status for one in everything] == ["added"] * 4


def test_what_is_too_large_is_listed_without_its_text(tmp_path: Path) -> None:
    limits = Limits(diff_files=3, diff_file_bytes=1000, diff_file_lines=50, diff_lines=80)
    world = GitWorld(tmp_path, limits=limits)
    try:
        work = world.work("work", world.create())
        world.commit(work, {"start": ""})
        before = pushed(world, work)
        files: dict[str, str | bytes] = {"big": "x" * 1001, "long": "x\n" * 51}
        world.commit(work, {**files, "p": "1\n" * 40, "q": "2\n" * 41, "r": ""})
        found, more = diff(world.store, before, pushed(world, work))
        assert more and [one.path for one in found] == ["big", "long", "p"]
        assert [one.text is None for one in found] == [True, True, True], "91 lines are too many"
    finally:
        world.close()


def test_hostile_files_take_no_long_time(world: GitWorld) -> None:
    chance = random.Random(1)
    work = world.work("work", world.create())

    def hostile() -> bytes:
        return b"".join(b"%d\n" % chance.randrange(101) for _ in range(5000))

    world.commit(work, {f"f{number}": hostile() for number in range(10)})
    before = pushed(world, work)
    world.commit(work, {f"f{number}": hostile() for number in range(10)})
    after = pushed(world, work)
    began = time.process_time()
    found, _ = diff(world.store, before, after)
    assert time.process_time() - began < 10
    assert applied(world, work, before, found) == world.head(work, f"{after}^{{tree}}")


def test_the_log_is_read_in_pages_up_to_a_limit(tmp_path: Path) -> None:
    world = GitWorld(tmp_path, limits=Limits(log_skip=5))
    try:
        work = world.work("work", world.create())
        for number in range(7):
            world.commit(work, {"f": str(number)})
        head = pushed(world, work)
        files = world.store.files(world.store.repositories.get("acme", "app").id)
        whole = [one.sha for one in files.log(head)]
        assert whole == world.git("rev-list", head, cwd=work).split()
        pages = [[one.sha for one in files.log(head, skip=at, limit=3)] for at in (0, 3, 5)]
        assert pages == [whole[:3], whole[3:6], whole[5:]]
        with pytest.raises(OverLimit, match="log_skip"):
            files.log(head, skip=6)
    finally:
        world.close()
