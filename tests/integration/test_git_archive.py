"""Archives and moves: whole trees read as one file, and changed without a git client."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_store import (
    ArchiveFormat,
    BadName,
    FileEdit,
    Limits,
    ObjectNotFound,
    OverLimit,
    Pusher,
)
from tests.integration.git_world import GitWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path)
    yield world
    world.close()


@pytest.fixture
def commit(world: GitWorld) -> str:
    """A tree with all that a tree can hold."""
    work = world.work("work", world.create())
    world.commit(
        work,
        {
            "a.txt": "plain\n",
            "empty": "",
            "dir/deep/b.bin": os.urandom(100_000),
            "dir/ümläut.txt": "x",
            "n" * 150 + "/" + "m" * 150: "a path longer than a tar's header takes",
        },
    )
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o755)
    (work / "link").symlink_to("dir/deep")
    sha = world.commit(work, {})
    world.git("push", "-q", "origin", "main", cwd=work)
    return sha


def archive(world: GitWorld, sha: str, kind: ArchiveFormat) -> bytes:
    repository = world.store.repositories.get("acme", "app")
    return b"".join(world.store.files(repository.id).archive(sha, kind, prefix="app/"))


def test_a_tar_holds_what_git_would_put_into_it(world: GitWorld, commit: str) -> None:
    theirs = subprocess.run(
        ["git", "archive", "--prefix=app/", "--format=tar", commit],
        cwd=world.directory / "work",
        capture_output=True,
        check=True,
    ).stdout
    ours = archive(world, commit, ArchiveFormat.TAR)
    assert ours == archive(world, commit, ArchiveFormat.TAR), "always the same bytes"
    assert _members(ours) == {
        name: value for name, value in _members(theirs).items() if not name.endswith("/")
    }


def _members(data: bytes) -> dict[str, tuple[int, bytes | str | None, bool]]:
    found: dict[str, tuple[int, bytes | str | None, bool]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for one in tar:
            file = tar.extractfile(one) if one.isfile() else None
            content = one.linkname if one.issym() else file.read() if file else None
            name = one.name + ("/" if one.isdir() else "")
            found[name] = (int(one.mtime), content, bool(one.mode & 0o100) and one.isfile())
    return found


def test_a_zip_holds_the_same(world: GitWorld, commit: str) -> None:
    tar = _members(archive(world, commit, ArchiveFormat.TAR))
    with zipfile.ZipFile(io.BytesIO(archive(world, commit, ArchiveFormat.ZIP))) as zipped:
        assert zipped.testzip() is None
        assert {info.filename for info in zipped.infolist()} == set(tar)
        assert zipped.read("app/a.txt") == b"plain\n"
        assert zipped.getinfo("app/run.sh").external_attr >> 16 == 0o100755
        link = zipped.getinfo("app/link")
        assert link.external_attr >> 16 == 0o120777 and zipped.read(link) == b"dir/deep"


def test_an_archive_comes_in_pieces_and_within_limits(tmp_path: Path) -> None:
    world = GitWorld(tmp_path, limits=Limits(export_bytes=12_000_000, file_bytes=1000))
    try:
        work = world.work("work", world.create())
        sha = world.commit(work, {"large.bin": os.urandom(11_000_000)})
        more = world.commit(work, {"more.bin": os.urandom(2_000_000)})
        world.git("push", "-q", "origin", "main", cwd=work)
        files = world.store.files(world.store.repositories.get("acme", "app").id)
        for kind in ArchiveFormat:
            assert max(map(len, files.archive(sha, kind))) < 2_500_000
            with pytest.raises(OverLimit, match="export_bytes"):
                list(files.archive(more, kind))
        with pytest.raises(ObjectNotFound):
            files.archive("1" * 40, ArchiveFormat.ZIP)
    finally:
        world.close()


def change(world: GitWorld, *edits: FileEdit) -> dict[str, bytes]:
    """Commit edits on main; all files afterwards."""
    repository = world.store.repositories.get("acme", "app")
    sha = world.store.commit(
        repository.id,
        edits,
        branch="main",
        message="change",
        author="A <a@b>",
        pusher=Pusher(None, "a"),
    )
    files = world.store.files(repository.id)
    return {entry.path: files.read(sha, entry.path) for entry in files.walk(sha)}


def test_files_are_moved_and_may_change_places(world: GitWorld) -> None:
    world.create()
    change(world, FileEdit("a", b"1", executable=True), FileEdit("d/b", b"2"))
    assert change(
        world,
        FileEdit("a", None, moved_from="d/b"),
        FileEdit("d/b", None, moved_from="a"),
        FileEdit("c", b"3"),
    ) == {"a": b"2", "d/b": b"1", "c": b"3"}
    repository = world.store.repositories.get("acme", "app")
    files = world.store.files(repository.id)
    head = world.store.refs.resolve(repository.id, "main")
    assert head is not None
    moved = files.entry(head, "d/b")
    assert moved is not None and moved.executable, "a move keeps the mode"
    assert change(world, FileEdit("e/f/g", None, moved_from="d/b")) == {
        "a": b"2",
        "e/f/g": b"1",
        "c": b"3",
    }


def test_a_move_that_makes_no_sense_is_refused(world: GitWorld) -> None:
    world.create()
    change(world, FileEdit("a", b"1"), FileEdit("d/b", b"2"))
    with pytest.raises(ObjectNotFound, match="no file 'x' to move"):
        change(world, FileEdit("y", None, moved_from="x"))
    with pytest.raises(BadName, match="both written and moved to"):
        change(world, FileEdit("y", b"1", moved_from="a"))
    with pytest.raises(ObjectNotFound, match="no file 'a' to move"):
        change(world, FileEdit("y", None, moved_from="a"), FileEdit("z", None, moved_from="a"))
    with pytest.raises(BadName, match="is a directory"):
        change(world, FileEdit("d", None, moved_from="a"))
    with pytest.raises(BadName, match="not acceptable"):
        change(world, FileEdit("y", None, moved_from="../a"))
