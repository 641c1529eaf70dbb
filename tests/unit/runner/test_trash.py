"""Whatever a command left behind can be removed."""

from __future__ import annotations

import os
from pathlib import Path

from ci_platform.runner.trash import Trash, remove_tree


def thrown(tmp_path: Path) -> Path:
    """Throw away tmp_path/job and empty the trash; where it was."""
    trash = Trash(tmp_path / "trash")
    trash.throw(tmp_path / "job", os.open(tmp_path / "job", os.O_RDONLY))
    trash.close()
    assert not (tmp_path / "job").exists()
    return tmp_path / "trash"


def test_a_thrown_directory_is_gone_with_everything_in_it(tmp_path: Path) -> None:
    (tmp_path / "job/a/b").mkdir(parents=True)
    (tmp_path / "job/a/file").write_text("x")
    (tmp_path / "job/link").symlink_to("/etc")
    os.mkfifo(tmp_path / "job/pipe")
    assert os.listdir(thrown(tmp_path)) == []


def test_closed_directories_are_opened(tmp_path: Path) -> None:
    (tmp_path / "job/a/b/c").mkdir(parents=True)
    (tmp_path / "job/a/b/c/file").touch()
    for name in ("job/a/b/c", "job/a/b", "job/a"):
        (tmp_path / name).chmod(0)
    assert os.listdir(thrown(tmp_path)) == []


def test_depth_is_no_obstacle(tmp_path: Path) -> None:
    """Deeper than a path may be long, and than Python may recurse."""
    here = os.getcwd()
    (tmp_path / "job").mkdir()
    try:
        os.chdir(tmp_path / "job")
        for _ in range(1100):
            os.mkdir("deep")
            os.chdir("deep")
    finally:
        os.chdir(here)
    remove_tree(tmp_path, "job")
    assert os.listdir(tmp_path) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "job").mkdir()
    (tmp_path / "job/link").symlink_to(tmp_path / "kept")
    thrown(tmp_path)
    assert (tmp_path / "kept/file").exists()


def test_what_an_earlier_worker_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "trash/left/over").mkdir(parents=True)
    Trash(tmp_path / "trash").close()
    assert os.listdir(tmp_path / "trash") == []
