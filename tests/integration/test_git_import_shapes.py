"""Repositories of very different shapes, taken over from git's own server and cloned back: every
object, every ref and what `git fsck` says of them are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from git_store import Pusher
from tests.integration.git_same import run, served, told
from tests.integration.git_world import GitWorld

WHO = b"A <a@example.org>"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitWorld]:
    made = GitWorld(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def remotes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("remotes")
    with served(root) as where:
        yield root, where


class Stream:
    """Input of `git fast-import`: a repository in one process, however many commits it has."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._marks = 0

    def blob(self, content: bytes) -> int:
        self._marks += 1
        self._add(b"blob\nmark :%d\n" % self._marks, content)
        return self._marks

    def commit(
        self, branch: bytes, *changes: bytes, parents: tuple[int, ...] = (), message: bytes = b"m"
    ) -> int:
        self._marks += 1
        number = self._marks
        when = b"%s %d %+05d\n" % (WHO, 1_600_000_000 + number * 7, (number % 25 - 12) * 100)
        head = b"commit refs/heads/%s\nmark :%d\nauthor %scommitter %s" % (
            branch,
            number,
            when,
            when,
        )
        self._add(head, message)
        for word, parent in zip([b"from", *[b"merge"] * len(parents)], parents, strict=False):
            self._parts.append(b"%s :%d\n" % (word, parent))
        self._parts += [change + b"\n" for change in changes]
        return number

    def tag(self, name: bytes, mark: int) -> None:
        self._parts.append(b"tag %s\nfrom :%d\ntagger %s 1700000000 +0000\n" % (name, mark, WHO))
        self._add(b"", b"release\n")

    def reset(self, ref: bytes) -> None:
        """What comes next has no parent."""
        self._parts.append(b"reset %s\n\n" % ref)

    def _add(self, head: bytes, content: bytes) -> None:
        self._parts.append(head + b"data %d\n" % len(content) + content + b"\n")

    def into(self, repository: Path) -> None:
        run(repository, "fast-import", "--quiet", given=b"".join(self._parts))


def deep(at: Path) -> None:
    """A long history with merges, octopuses, three roots, and tags of everything."""
    stream, last = Stream(), 0
    marks: list[int] = []
    for number in range(400):
        blob = stream.blob(b"line\n" * (number % 50) + b"%d\n" % number)
        change = b"M 100644 :%d dir%d/file%d" % (blob, number % 7, number % 31)
        parents = (last, *marks[-40::10][:3]) if number % 20 == 19 else (last,) if last else ()
        last = stream.commit(b"main", change, parents=parents, message=b"change %d\n" % number)
        marks.append(last)
    for number in range(0, 400, 40):
        stream.tag(b"v%d" % number, marks[number])
    for name in (b"root-2", "r\u00e4tsel/\u6f22".encode()):
        stream.reset(b"refs/heads/" + name)
        stream.commit(name, message=b"")
    stream.into(at)
    run(at, "tag", "light", "main~3")
    run(at, "tag", "-a", "-m", "of a tag", "again", "v40")
    run(at, "tag", "-a", "-m", "of a tree", "tree", "main^{tree}")
    run(at, "tag", "blob", "main:dir0/file0")
    # Headers that git keeps and does not make any more, and a text that is not UTF-8.
    tree, parent = run(at, "rev-parse", "main^{tree}", "main").split()
    odd = f"tree {tree}\nparent {parent}\nauthor A <a@b> 0 -1200\ncommitter  <> 1 +1400\n"
    odd += "encoding ISO-8859-1\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\nfoo bar\n\n"
    made = run(at, "hash-object", "-w", "-t", "commit", "--stdin", given=odd.encode() + b"\xe4")
    run(at, "branch", "odd", made.strip())


def wide(at: Path) -> None:
    """One tree with thousands of files, deep directories, links, submodules and odd names."""
    stream = Stream()
    blobs = [stream.blob(b"%d\n" % number) for number in range(50)]
    changes = [b"M 100644 :%d f/%d/%d" % (blobs[n % 50], n % 40, n) for n in range(4000)]
    changes += [b"M 100755 :%d %s/run" % (blobs[0], b"/".join([b"d"] * 150))]
    target = stream.blob(b"../../etc/passwd")
    modules = stream.blob(b'[submodule "x"]\n\tpath = x\n\turl = ../x.git\n')
    changes += [
        b"M 120000 :%d link" % target,
        b"M 160000 %s x" % (b"1" * 40),
        b"M 100644 :%d .gitmodules" % modules,
        b"M 120000 :%d .gitignore" % target,
    ]
    names = [rb"\377\376", rb"new\nline", rb"tab\tquote\"", b"Case", b"case", b" ", b"...", b"aux"]
    names += [b"n" * 255, rb"\001", b"-rf", b"a:b", b"*?", rb"back\\slash", b"git", b"x.git"]
    names += ["u\u0308".encode(), "\u00fc".encode(), b"a-b", b"a/b", b"a0"]
    changes += [b'M 100644 :%d "odd/%s"' % (blobs[1], name) for name in names]
    last = stream.commit(b"main", *changes)
    stream.commit(b"main", b"D f", b"M 100644 :%d f" % blobs[2], parents=(last,))
    stream.into(at)


def large(at: Path) -> None:
    """Blobs beyond what is held in memory, versions that are deltas, many packs and loose files."""
    noise = b"".join(hashlib.sha512(b"%d" % number).digest() for number in range(90_000))
    last: tuple[int, ...] = ()
    run(at, "config", "fastimport.unpackLimit", "1")
    for number in range(3):  # a pack each
        stream = Stream()
        big = stream.blob(noise[: 5_000_000 + number * 10_000] + b"%d" % number)
        zeros = stream.blob(bytes(5_000_000 + number))
        text = stream.blob(b"".join(b"row %d\n" % (row * (number + 1)) for row in range(20_000)))
        changes = [b"M 100644 :%d %s" % (mark, b"%d" % mark) for mark in (big, zeros, text)]
        if last:
            changes.insert(0, b"from refs/heads/main^0")
        last = (stream.commit(b"main", *changes),)
        stream.into(at)
    assert len(list((at / "objects/pack").glob("*.pack"))) == 3
    run(at, "branch", "side", "main~1")
    loose = run(at, "commit-tree", "-m", "loose", "-p", "side", "main^{tree}").strip()
    run(at, "update-ref", "refs/heads/side", loose)


@pytest.mark.parametrize("shape", [deep, wide, large])
def test_what_is_taken_over_comes_back_the_same(
    world: GitWorld, remotes: tuple[Path, str], shape: Callable[[Path], None]
) -> None:
    root, where = remotes
    remote = root / f"{shape.__name__}.git"
    run(root, "init", "-q", "--bare", "-b", "main", str(remote))
    shape(remote)
    here = world.store.repositories.create("acme", shape.__name__).id
    done = world.store.import_remote(
        here, f"{where}/{remote.name}", pusher=Pusher(None, "import"), allow_private=True
    )
    assert done.refused == {}
    assert world.store.fsck(here).problems == ()
    back = world.directory / "back"
    run(root, "clone", "-q", "--mirror", world.url(f"acme/{shape.__name__}"), str(back))
    theirs, ours = told(remote), told(back)
    for what, lines in theirs.items():
        assert ours[what] == lines, what
    assert len(theirs["objects"]) > 10
