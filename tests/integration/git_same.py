"""Is a repository the same as another: git's own server for it, and all that git says of it.

Used by tests of imports, and by bench/imports.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parents[2]


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Have `git http-backend` serve the repositories in a directory; yields where."""
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.git_peer", str(root)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.terminate()


def run(at: Path, *arguments: str, given: bytes = b"") -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=at, input=given, capture_output=True, check=False
    )
    assert not done.returncode, done.stderr.decode(errors="replace")
    return done.stdout.decode("utf-8", "surrogateescape")


def told(at: Path) -> dict[str, list[str]]:
    """All that can be asked of a repository."""
    objects = run(at, "rev-list", "--objects", "--all").splitlines()
    names = "\n".join(line.split(" ")[0] for line in objects).encode()
    fsck = run(at, "fsck", "--full", "--strict", "--no-dangling", "--no-progress")
    return {
        "refs": run(at, "for-each-ref").splitlines(),
        "head": run(at, "symbolic-ref", "HEAD").splitlines(),
        "objects": sorted(objects),
        "kinds": sorted(run(at, "cat-file", "--batch-check", given=names).splitlines()),
        "tree": run(at, "rev-parse", "HEAD^{tree}").splitlines(),
        "files": run(at, "ls-tree", "-r", "-t", "-z", "-l", "HEAD").split("\0"),
        "fsck": sorted(fsck.splitlines()),
    }
