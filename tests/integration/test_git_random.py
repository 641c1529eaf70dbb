"""Random histories and random plans of pushes and fetches; the client's own fsck is the judge.

A failure names its seed, and the seed makes it happen again.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.git_world import GitWorld, Recorder

COMMITS = 40
PATHS = [f"{d}{f}" for d in ("", "a/", "a/b/", "a.b/", "c/d/e/") for f in ("x", "y", "x.txt")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path_factory.mktemp("git"))
    world.store.listen(Recorder())
    yield world
    world.close()


class History:
    """A random history in a bare repository, made by `git fast-import`."""

    def __init__(self, world: GitWorld, name: str, chance: random.Random) -> None:
        self.world, self.name, self.chance = world, name, chance
        world.git("init", "-q", "--bare", name)
        stream = b"".join(self._stream())
        subprocess.run(
            ["git", "fast-import", "--quiet", f"--export-marks={world.directory}/{name}.marks"],
            cwd=world.directory / name,
            input=stream,
            check=True,
        )
        marks = (world.directory / f"{name}.marks").read_text().split()
        self.commits = [sha for mark, sha in sorted(zip(marks[::2], marks[1::2], strict=True))]
        chance.shuffle(self.commits)

    def _stream(self) -> Iterator[bytes]:
        chance = self.chance
        trees: dict[int, dict[str, bytes]] = {0: {}}
        for mark in range(1, COMMITS + 1):
            parents = chance.sample(range(1, mark), min(mark - 1, chance.choice([1, 1, 1, 2, 3])))
            tree = dict(trees[parents[0]]) if parents else {}
            if chance.random() < 0.15:  # a revert: the tree of some earlier commit
                tree = dict(trees[chance.randrange(mark)])
            for _ in range(chance.randrange(4)):
                self._change(tree)
            trees[mark] = tree
            when = 1_700_000_000 + chance.randrange(1000) * (1 if chance.random() < 0.3 else mark)
            yield f"commit refs/heads/b{mark}\nmark :{mark}\n".encode()
            yield f"committer A <a@b> {when} +0000\ndata 1\nm\n".encode()
            for number, parent in enumerate(parents):
                yield f"{'merge' if number else 'from'} :{parent}\n".encode()
            yield b"deleteall\n"
            for path, content in tree.items():
                mode = "120000" if path.endswith("y") else "100644"  # y: a link
                yield f"M {mode} inline {path}\ndata {len(content)}\n".encode() + content + b"\n"
        for mark in chance.sample(range(1, COMMITS), 5):
            tagger = "tagger A <a@b> 1700000000 +0000"
            yield f"tag t{mark}\nfrom :{mark}\n{tagger}\ndata 1\nm\n".encode()

    def _change(self, tree: dict[str, bytes]) -> None:
        path = self.chance.choice(PATHS)
        if path in tree and self.chance.random() < 0.4:
            del tree[path]
            return
        line = self.chance.randbytes(self.chance.choice([3, 40])).hex().encode()
        tree[path] = line * (1 if path.endswith("y") else self.chance.choice([1, 1, 50, 400]))

    def git(self, *arguments: str, ok: bool = True) -> str:
        return self.world.git(*arguments, cwd=self.name, ok=ok)


def reachable(world: GitWorld, cwd: str) -> set[str]:
    lines = world.git("rev-list", "--objects", "--all", cwd=cwd).splitlines()
    return {line.split()[0] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_pushed_comes_back_whole(world: GitWorld, seed: int) -> None:
    chance = random.Random(seed)
    url = world.create(f"acme/whole-{seed}")
    history = History(world, f"source-{seed}", chance)
    mirror = f"mirror-{seed}"
    world.git("clone", "-q", "--mirror", url, mirror)
    for _ in range(4):
        specs = [
            f"+{commit}:refs/heads/{chance.choice('pqrs')}{number}"
            for number, commit in enumerate(chance.sample(history.commits, chance.randrange(1, 4)))
        ]
        if chance.random() < 0.5:
            specs.append("refs/tags/*:refs/tags/*")
        history.git("push", "-q", url, *specs)
        version = chance.choice("012")
        world.git("-c", f"protocol.version={version}", "fetch", "-q", "--prune", cwd=mirror)
        world.fsck(mirror)
    fresh = f"fresh-{seed}"
    world.git("clone", "-q", "--mirror", url, fresh)
    world.fsck(fresh)
    assert world.git("ls-remote", url) == world.git(
        "ls-remote", f"file://{world.directory}/{fresh}"
    )
    assert reachable(world, fresh) <= reachable(world, mirror) | reachable(world, f"source-{seed}")
    history.git("push", "-q", "--mirror", url)
    again = f"again-{seed}"
    world.git("clone", "-q", "--mirror", url, again)
    world.fsck(again)
    assert reachable(world, again) == reachable(world, f"source-{seed}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_shallow_and_partial_clones_stay_sound(world: GitWorld, seed: int) -> None:
    chance = random.Random(1000 + seed)
    url = world.create(f"acme/shallow-{seed}")
    history = History(world, f"deep-{seed}", chance)
    tips = history.commits[:6]
    history.git("push", "-q", url, f"{tips[0]}:refs/heads/main", "refs/tags/*:refs/tags/*")
    clone = f"cut-{seed}"
    version = ("-c", f"protocol.version={chance.choice('02')}")
    partial = chance.random() < 0.5
    how = chance.choice([["--depth=1"], ["--depth=3"], ["--no-single-branch", "--depth=2"]])
    if partial:
        how = [f"--filter={chance.choice(['blob:none', 'blob:limit=50', 'tree:0'])}"]
    world.git(*version, "clone", "-q", *how, url, clone)
    for tip in tips[1:]:
        history.git("push", "-q", url, f"+{tip}:refs/heads/{chance.choice(['main', 'x', 'y'])}")
        options: list[str] = []
        if not partial:
            options = chance.choice([[], ["--deepen=2"], ["--depth=4"], ["--depth=1"]])
        world.git(*version, "fetch", "-q", *options, "origin", cwd=clone)
        if not partial:
            world.fsck(clone)
        world.git(*version, "checkout", "-q", "--detach", "origin/main", cwd=clone)
    if not partial:
        shallow = (world.directory / clone / ".git/shallow").exists()
        world.git(*version, "fetch", "-q", *(["--unshallow"] if shallow else []), cwd=clone)
        world.fsck(clone)
    assert Path(world.directory / clone).exists()
    origin = world.git("rev-list", "--objects", "origin/main", cwd=clone)
    assert len(origin.splitlines()) > 0
