"""Layers: what a command changed comes out as it went in, and never lands anywhere else."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest
import zstandard
from obstore.store import LocalStore, MemoryStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.layers import LayerStore, layer_path
from ci_platform.runner.limits import RunnerLimits
from ci_platform.runner.manifest import (
    Changes,
    Manifest,
    TooManyFiles,
    compare,
    scan,
    wait_for_tick,
)
from ci_platform.runner.restore import apply

LIMITS = RunnerLimits(files=1000)


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def listed(directory: Path) -> Manifest:
    with opened(directory) as root:
        return scan(root, LIMITS)


def contents(directory: Path) -> dict[str, str]:
    """Every path with what it is: mode and text, link target, or directory."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name, mode = str(path.relative_to(directory)), path.lstat().st_mode
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = f"dir {stat.S_IMODE(mode):o}"
        else:
            found[name] = f"{stat.S_IMODE(mode):o} {path.read_text()}"
    return found


@pytest.fixture
def layers(tmp_path: Path) -> LayerStore:
    (tmp_path / "scratch").mkdir()
    return LayerStore(LocalStore(tmp_path / "objects", mkdir=True), tmp_path / "scratch")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "src/deep").mkdir(parents=True)
    (root / "README").write_text("read me")
    (root / "src/main.py").write_text("print(1)")
    (root / "src/deep/data").write_text("data")
    (root / "latest").symlink_to("src/main.py")
    return root


def copy_of(tree: Path) -> Path:
    copy = tree.with_name("copy")
    os.system(f"cp -a '{tree}' '{copy}'")
    return copy


def change_and_save(layers: LayerStore, root: Path, change: Callable[[Path], object]) -> str:
    before = listed(root)
    wait_for_tick(before)
    change(root)
    with opened(root) as fd:
        after = scan(fd, LIMITS)
        return layers.save(fd, compare(before, after), after)


def restore(layers: LayerStore, root: Path, *digests: str) -> None:
    with opened(root) as fd:
        layers.restore(fd, digests)


def some_of_everything(root: Path) -> None:
    (root / "README").write_text("changed")
    (root / "new dir/empty").mkdir(parents=True)
    (root / "new dir/ünïcode").write_text("x")
    (root / "tool.sh").write_text("#!/bin/sh")
    (root / "tool.sh").chmod(0o750)
    (root / "out").symlink_to("/etc/passwd")
    os.link(root / "tool.sh", root / "tool-again.sh")
    (root / "src/deep/data").unlink()
    (root / "src/deep").rmdir()
    (root / "latest").unlink()
    (root / "latest").mkdir()
    (root / "src/main.py").unlink()
    (root / "src/main.py").symlink_to("../README")
    (root / "closed").mkdir()
    (root / "closed/inside").write_text("in")
    (root / "closed").chmod(0o555)


def test_a_layer_on_top_of_the_same_tree_gives_the_same_files(
    layers: LayerStore, tree: Path
) -> None:
    copy = copy_of(tree)
    digest = change_and_save(layers, tree, some_of_everything)
    restore(layers, copy, digest)
    assert contents(copy) == contents(tree)
    assert (copy / "tool.sh").stat().st_ino == (copy / "tool-again.sh").stat().st_ino
    assert int((copy / "README").stat().st_mtime) == int((tree / "README").stat().st_mtime)


def test_the_same_changes_have_the_same_digest(layers: LayerStore, tree: Path) -> None:
    before = listed(tree)
    wait_for_tick(before)
    some_of_everything(tree)
    with opened(tree) as root:
        after = scan(root, LIMITS)
        changes = compare(before, after)
        assert layers.save(root, changes, after) == layers.save(root, changes, after)


def test_nothing_changed_is_no_change(tree: Path) -> None:
    assert not compare(listed(tree), listed(tree))


def test_a_change_that_keeps_size_and_time_is_noticed(tree: Path) -> None:
    before = listed(tree)
    wait_for_tick(before)
    times = (tree / "README").stat()
    (tree / "README").write_text("eM DAER")
    os.utime(tree / "README", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert compare(before, listed(tree)) == Changes(["README"], [])


def test_a_change_right_after_the_checkout_is_noticed(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / "file"
        path.write_text("a")
        before = listed(tmp_path)
        wait_for_tick(before)
        with open(path, "r+") as file:
            file.write("b")
        assert compare(before, listed(tmp_path)).written == ["file"], f"round {number}"


def test_deleting_a_directory_is_one_deletion(tree: Path) -> None:
    before = listed(tree)
    os.system(f"rm -r '{tree}/src'")
    assert compare(before, listed(tree)) == Changes([], ["src"])


def test_set_uid_bits_sockets_and_pipes_are_not_kept(layers: LayerStore, tree: Path) -> None:
    copy = copy_of(tree)

    def plant(root: Path) -> None:
        (root / "root-me").write_text("x")
        (root / "root-me").chmod(0o6755)
        os.mkfifo(root / "pipe")

    digest = change_and_save(layers, tree, plant)
    assert not listed(tree).plain
    restore(layers, copy, digest)
    assert contents(copy)["root-me"] == "755 x"
    assert not (copy / "pipe").exists()


def test_more_files_than_allowed_are_an_error(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / str(number)).touch()
    with opened(tmp_path) as root, pytest.raises(TooManyFiles, match="SLUICE_COMMAND_FILES"):
        scan(root, RunnerLimits(files=5))


def test_a_path_that_the_kernel_cannot_open_is_an_error(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    finally:
        os.chdir(here)
    with opened(tmp_path) as root, pytest.raises(TooManyFiles, match="4,095 bytes"):
        scan(root, LIMITS)


def test_layers_of_parallel_steps_join_in_order(layers: LayerStore, tree: Path) -> None:
    left, right = copy_of(tree), tree.with_name("right")
    os.system(f"cp -a '{tree}' '{right}'")
    first = change_and_save(layers, left, lambda root: os.system(f"rm -r '{root}/src/deep'"))
    second = change_and_save(
        layers, right, lambda root: (root / "src/deep/more").write_text("more")
    )
    restore(layers, tree, first, second)
    assert contents(tree)["src/deep/more"] == "644 more"
    assert "src/deep/data" not in contents(tree)


def test_a_missing_layer_is_named(layers: LayerStore, tree: Path) -> None:
    with pytest.raises(RunnerUnavailable, match=f"layer {'0' * 64} is not in the object store"):
        restore(layers, tree, "0" * 64)


def test_a_damaged_layer_is_named(tmp_path: Path, tree: Path) -> None:
    store = MemoryStore()
    (tmp_path / "scratch").mkdir()
    layers = LayerStore(store, tmp_path / "scratch")
    digest = change_and_save(layers, tree, lambda root: (root / "a").write_text("a" * 10_000))
    whole = bytes(obstore.get(store, layer_path(digest)).bytes())
    for damaged in (whole[: len(whole) // 2], b"", b"\0" * 100, whole[:-20] + b"\1" * 20):
        obstore.put(store, layer_path(digest), damaged)
        with pytest.raises(RunnerUnavailable, match=f"layer {digest} is damaged"):
            restore(layers, tree, digest)


# --- a hostile archive ---------------------------------------------------------------------------


def archive(*members: tarfile.TarInfo, deleted: list[str] | None = None) -> tarfile.TarFile:
    packed = io.BytesIO()
    header = {"SLUICE.deleted": json.dumps(deleted or [])}
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, pax_headers=header
    ) as tar:
        for member in (one("keep", tarfile.DIRTYPE), *members):
            tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return tarfile.open(fileobj=io.BytesIO(packed.getvalue()), mode="r|")


def one(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 1
) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    found.size = size if kind == tarfile.REGTYPE else 0
    return found


@pytest.mark.parametrize(
    "bad",
    [
        [one("../outside")],
        [one("/outside")],
        [one("a/../../outside")],
        [one("./a")],
        [one("pipe", tarfile.FIFOTYPE)],
        [one("disk", tarfile.BLKTYPE)],
        [one("tty", tarfile.CHRTYPE)],
        [one("hard", tarfile.LNKTYPE, "../outside")],
        [one("hard", tarfile.LNKTYPE, "README")],
        [one("soft", tarfile.SYMTYPE, ".."), one("hard", tarfile.LNKTYPE, "soft/outside")],
    ],
    ids=lambda members: "+".join(each.name for each in members),
)
def test_members_that_lead_outside_are_refused(bad: list[tarfile.TarInfo], tree: Path) -> None:
    (tree.parent / "outside").write_text("untouched")
    with opened(tree) as root, archive(*bad) as tar, pytest.raises(ValueError):
        apply(tar, root, {})
    assert (tree.parent / "outside").read_text() == "untouched"


def test_a_member_below_a_link_replaces_the_link_and_does_not_follow_it(tree: Path) -> None:
    outside = tree.parent / "elsewhere"
    outside.mkdir()
    (tree / "link").symlink_to(outside)
    with opened(tree) as root, archive(one("link/planted")) as tar:
        apply(tar, root, {})
    assert list(outside.iterdir()) == []
    assert (tree / "link/planted").read_text() == "x"


def test_a_file_over_a_link_replaces_the_link(tree: Path) -> None:
    outside = tree.parent / "outside"
    outside.write_text("untouched")
    (tree / "link").symlink_to(outside)
    with opened(tree) as root, archive(one("link")) as tar:
        apply(tar, root, {})
    assert outside.read_text() == "untouched"


def test_deletions_do_not_leave_the_workspace_either(tree: Path) -> None:
    outside = tree.parent / "elsewhere"
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "link").symlink_to(outside)
    with opened(tree) as root:
        with archive(deleted=["link/kept"]) as tar:
            apply(tar, root, {})
        with archive(deleted=["../elsewhere/kept"]) as tar, pytest.raises(ValueError):
            apply(tar, root, {})
    assert (outside / "kept").exists()


def test_a_bomb_of_a_window_is_refused(tmp_path: Path, tree: Path) -> None:
    store = MemoryStore()
    (tmp_path / "scratch").mkdir()
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=30)
    huge = zstandard.ZstdCompressor(compression_params=parameters).compress(b"\0" * (1 << 20))
    obstore.put(store, layer_path("0" * 64), huge)
    with pytest.raises(RunnerUnavailable, match="damaged"):
        restore(LayerStore(store, tmp_path / "scratch"), tree, "0" * 64)
