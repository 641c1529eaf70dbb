"""Workspaces that are overlays: the same changes come out as of copies, and nothing goes below."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ci_platform.runner import SandboxRunner
from ci_platform.runner.layers import LayerStore
from ci_platform.runner.overlap import Listing
from tests.integration.ordinary_user import run_as_user
from tests.integration.runner_world import Bench, GivenTrees, objects_in

FILES = {
    "README": "read me\n",
    "src/main.c": "int main;\n",
    "src/deep/a": "a\n",
    "src/deep/b": "b\n",
    "tool": "+x#!/bin/sh\n",
    "docs/one": "1\n",
    "docs/two": "2\n",
}
CHANGES = {
    "nothing": "true",
    "read everything": "find . -type f -exec cat {} +",
    "write": "echo new > README; echo made > src/made",
    "append": "echo more >> src/main.c",
    "same size and time": "touch -r README t; echo READ ME > README; touch -r t README; rm t",
    "delete a file": "rm src/deep/a",
    "delete a directory": "rm -r src",
    "delete and make again": "rm -r src; mkdir src; echo x > src/main.c",
    "a directory instead of a file": "rm README; mkdir README; echo x > README/x",
    "a file instead of a directory": "rm -r src/deep; echo x > src/deep",
    "a link instead of a directory": "rm -r src/deep; ln -s ../docs src/deep",
    "move a file": "mv README src/README",
    "move a directory": "mv src lib",
    "move a directory over the place of another": "rm -r docs; mv src docs",
    "modes": "chmod 700 src; chmod -x tool; chmod 600 README",
    "links": "ln README again; ln -s README soft",
    "an empty directory": "mkdir -p empty/very",
    "closed directories": "mkdir -p c/d; echo x > c/d/e; chmod 000 c/d; chmod 500 src",
    "a pipe instead of a file": "rm README; mkfifo README",
    "replace by rename": "echo new > t; mv t README",
    "delete what was made": "echo x > made; rm made; mkdir d; rmdir d",
}
NEXT = (
    "echo next >> src/main.c 2>/dev/null || true; rm -rf docs; echo x > added; cat README || true"
)
AS_USER = (
    "import sys; from pathlib import Path; from tests.integration.test_runner_overlays import "
    "check_all; print(check_all(Path(sys.argv[1])))"
)


class Pair:
    """One runner with overlays, one with copies, over the same objects."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runners = {
            kind: SandboxRunner(
                trees=GivenTrees(FILES),
                objects=objects_in(directory),
                work_dir=directory / kind,
                overlay=kind == "overlay",
            )
            for kind in ("overlay", "copy")
        }
        (directory / "scratch").mkdir()
        self.layers = LayerStore(objects_in(directory), directory / "scratch")

    def layer(self, kind: str, script: str, *base: str, run_id: str) -> str | None:
        result = Bench(self.runners[kind]).sh(script, *base, run_id=run_id)
        assert result.exit_code == 0, (script, result)
        return result.layer

    def listing(self, digest: str | None) -> Listing:
        return Listing({}, [], []) if digest is None else self.layers.listing(digest)

    def cached(self) -> Mapping[str, str]:
        """Everything of the cached tree of the overlays."""
        found = {}
        for directory, _, names in os.walk(self.directory / "overlay/trees"):
            for name in names:
                path = Path(directory, name)
                status = path.lstat()
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path)] = f"{digest} {status.st_mode} {status.st_uid} {status.st_mtime}"
        return found

    def close(self) -> None:
        for runner in self.runners.values():
            runner.close()


def check(pair: Pair, name: str) -> None:
    """The change, and one after it, are the same layers either way, also on another machine."""
    script = CHANGES[name]
    first = {kind: pair.layer(kind, script, run_id=name) for kind in pair.runners}
    assert pair.listing(first["overlay"]) == pair.listing(first["copy"]), name
    base = [first["copy"]] if first["copy"] else []
    for run_id in (name, f"{name} elsewhere"):  # in the workspace that was kept, and in a new one
        second = {kind: pair.layer(kind, NEXT, *base, run_id=run_id) for kind in pair.runners}
        assert pair.listing(second["overlay"]) == pair.listing(second["copy"]), (name, run_id)


def check_all(directory: Path) -> str:
    pair = Pair(directory)
    try:
        for name in CHANGES:
            check(pair, name)
        return pair.runners["overlay"].probe().facts["workspaces"]
    finally:
        pair.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize("name", CHANGES)
def test_an_overlay_gives_the_layers_that_a_copy_gives(pair: Pair, name: str) -> None:
    check(pair, name)
    assert pair.runners["overlay"].probe().facts["workspaces"] == "overlays"
    assert pair.runners["copy"].probe().facts["workspaces"] == "copies"


def test_a_file_that_is_again_what_it_was_is_no_change(pair: Pair) -> None:
    script = "cp -p README kept; echo x > README; mv kept README; : >> src/main.c; chmod 644 tool"
    assert pair.layer("overlay", f"{script}; chmod 755 tool", run_id="undo") is None


def test_an_ordinary_user_has_overlays_too(tmp_path: Path) -> None:
    said = run_as_user(AS_USER, scratch=tmp_path) if os.geteuid() == 0 else check_all(tmp_path)
    assert said.strip() == "overlays"


def test_no_command_changes_the_tree_that_others_share(pair: Pair) -> None:
    pair.layer("overlay", "true", run_id="first")
    before = pair.cached()
    for number, script in enumerate(
        (
            "chmod -R 777 .; for f in $(find . -type f); do echo evil >> $f; done",
            "find . -type f -exec truncate -s 0 {} +; find . -exec touch -d 2001-01-01 {} +",
            'python3 -c \'import mmap\nf = open("README", "r+b")\nm = mmap.mmap(f.fileno(), 0)\n'
            'm[:4] = b"evil"\nm.flush()\'',
            "for f in $(find . -type f); do ln $f $f.hard; echo evil > $f.hard; done",
            "rm -rf ./* .[a-z]*",
        )
    ):
        pair.layer("overlay", script, run_id=f"evil-{number}")
    assert pair.cached() == before
    bench = Bench(pair.runners["overlay"])
    bench.sh("cat README; test -x tool; find . -type f | wc -l", run_id="later")
    assert bench.text("stdout") == f"read me\n{len(FILES)}\n"


def test_jobs_that_share_a_tree_see_only_their_own_changes(pair: Pair) -> None:
    seen: list[str] = []
    bench = Bench(pair.runners["overlay"])

    def meanwhile(stream: str, data: bytes) -> None:
        other = Bench(pair.runners["overlay"])
        other.sh("cat README; echo other > README; cat README", run_id="other")
        seen.append(other.text("stdout"))

    bench.sh("echo mine > README; echo now; sleep 0.5; test $(cat README) = mine", output=meanwhile)
    assert seen == ["read me\nother\n"]


def test_overlays_of_a_launcher_that_died_are_made_anew(pair: Pair) -> None:
    runner = pair.runners["overlay"]
    first = pair.layer("overlay", "echo 1 > made", run_id="run")
    assert first is not None
    process = runner._launch._process
    assert process is not None
    process.kill()
    process.wait()
    bench = Bench(runner)
    assert bench.sh("cat made README", first, run_id="run").exit_code == 0
    assert bench.text("stdout") == "1\nread me\n"


def test_a_tree_is_not_evicted_below_an_overlay(tmp_path: Path) -> None:
    trees = GivenTrees(FILES)
    runner = SandboxRunner(trees=trees, objects=objects_in(tmp_path), work_dir=tmp_path / "w")
    try:
        runner._workspaces._cache._trees_max = 1
        bench = Bench(runner)
        bench.sh("true")

        def meanwhile(stream: str, data: bytes) -> None:
            trees.files = {"other": "x"}
            for path in (tmp_path / "w/trees/commits").iterdir():
                path.unlink()
            assert Bench(runner).sh("cat other", run_id="other").exit_code == 0

        bench.sh("echo now; sleep 0.5; cat src/deep/a", run_id="again", output=meanwhile)
        assert bench.sh("cat src/deep/a", run_id="again").exit_code is not None
    finally:
        runner.close()
