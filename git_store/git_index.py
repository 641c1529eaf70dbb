"""Indexing done by the git binary, for packs of many objects: it takes a third of the time.

git is told to be as strict as index.py is, so its yes is ours: every object has been looked into,
and what it refers to is in the pack or in the repository. Its no is not: it names other reasons, so
our own indexing then says what is wrong, or that nothing is. Runs in the process that
index_process.py starts.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from git_store.child import start_here
from git_store.index import ROOTS_KEPT, PackIndex
from git_store.limits import Limits
from git_store.pack import map_file, sync
from git_store.packfile import TRAILER
from git_store.settle import Settled

_OLDEST = (2, 39, 1)  # before it, git looks neither at modes of files nor at .gitattributes
_SAY_SECONDS = 0.5
_SAID_BYTES = 200
_READ_BYTES = 1 << 16
# What old histories have and does no harm; and what git only mentions, but we refuse.
_LENIENT = (
    *("badDate", "badDateOverflow", "badEmail", "badName", "badTimezone", "missingEmail"),
    *("missingNameBeforeEmail", "missingSpaceBeforeDate", "missingSpaceBeforeEmail"),
    *("multipleAuthors", "zeroPaddedDate", "zeroPaddedFilemode", "nulInCommit", "badTagName"),
    *("missingTaggerEntry", "gitmodulesParse", "gitignoreSymlink"),
    *("gitattributesSymlink", "mailmapSymlink"),
)
_MESSAGES = ",".join([*(f"{one}=ignore" for one in _LENIENT), "badFilemode=error"])
_SIZED = re.compile(rb" (\w)\w+ (\d+)$", re.MULTILINE)
_COMMIT = re.compile(rb"^(\w{40}) commit", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ByGit:
    """What git needs to index a pack."""

    git: Path
    place: Path  # a bare repository without objects, in which nothing else happens
    others: Path  # where one is whose packs are those of the repository
    tips: Sequence[bytes]  # what is to be pointed at


def index_by_git(
    by: ByGit,
    pack_file: Path,
    index_file: Path,
    *,
    sizes: Iterable[int],
    limits: Limits,
    progress: Callable[[str], None],
) -> Settled | None:
    """Index a pack that arrives in a file, as `index_pack` and `settle_files` would; None if git
    refuses it, or is too old to know. `sizes`: how much of it is there, up to all."""
    if _version(by.git) < _OLDEST:
        return None
    said = by.place / "said"
    with said.open("wb") as words:
        child = start_here(
            by.git,
            by.place,
            *("index-pack", "--stdin", "--fix-thin", "-v", f"--strict={_MESSAGES}"),
            also={"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(by.others / "objects")},
            stdin=subprocess.PIPE,
            stderr=words,
        )
        with child, pack_file.open("rb") as file:
            size = _feed(child, file, sizes)
            _wait(child, said, progress)
    found = list((by.place / "objects" / "pack").glob("*.pack"))
    if child.returncode or not found:
        return None
    return _settled(by, found[0], (pack_file, index_file), received=size, limits=limits)


def _version(git: Path) -> tuple[int, ...]:
    """Of the binary; older than any if it has gone."""
    try:
        said = subprocess.run([git, "version"], capture_output=True, check=False, text=True).stdout
    except OSError:
        return ()
    return tuple(int(digits) for digits in re.findall(r"\d+", said)[:3])


def _feed(child: subprocess.Popen[bytes], file: IO[bytes], sizes: Iterable[int]) -> int:
    """Hand on what arrives, until all is there or git has had enough of it."""
    assert child.stdin is not None
    fed = 0
    try:
        for size in sizes:
            while fed < size:
                fed += os.sendfile(child.stdin.fileno(), file.fileno(), fed, size - fed)
    except BrokenPipeError:
        return fed
    child.stdin.close()
    return fed


def _wait(child: subprocess.Popen[bytes], said: Path, progress: Callable[[str], None]) -> None:
    """Tell what git tells, until it ends."""
    assert child.stdout is not None
    told = 0
    while True:
        ready, _, _ = select.select([child.stdout], [], [], _SAY_SECONDS)
        if ready and not child.stdout.read1(_SAID_BYTES):  # type: ignore[attr-defined]
            return
        with said.open("rb") as words:
            size = os.fstat(words.fileno()).st_size
            words.seek(max(told, size - _SAID_BYTES))
            last = words.read(_SAID_BYTES).decode("utf-8", "replace")
        if not ready and size > told:
            progress(last.rpartition("\r")[0].rpartition("\r")[2] + "\r")
            told = size


def _settled(
    by: ByGit, pack: Path, files: tuple[Path, Path], *, received: int, limits: Limits
) -> Settled | None:
    """What there is to know of a pack that git took; None if it may be over a limit."""
    index = PackIndex(map_file(pack.with_suffix(".idx")))
    size = pack.stat().st_size
    completed = frozenset[bytes]()
    if size != received:
        added = received - TRAILER
        pairs = zip(index.offsets(), index.names(), strict=True)
        completed = frozenset(name for offset, name in pairs if offset >= added)
    alone = not any((by.others / "objects" / "pack").iterdir())
    with ExitStack() as stack:
        walk = stack.enter_context(_walk(by)) if alone else None
        commits = _commits(by, limits, name=not alone)
        if commits is None:
            return None
        if walk is None:
            _graft(by, commits)
            walk = stack.enter_context(_walk(by))
        reached = _received(walk, completed)
    # If all that was received is a tip or reached from one, nothing else is a root.
    whole = walk.returncode == 0 and reached == index.count - len(completed)
    roots = tuple(sorted({tip for tip in by.tips if index.find(tip) is not None} - completed))
    settled = Settled(
        checksum=bytes(map_file(pack)[-TRAILER:]),
        size=size,
        objects=index.count,
        roots=roots if whole and len(roots) <= ROOTS_KEPT else None,
        needs=None,
        completed=completed,
        modules=frozenset(),
        attributes=frozenset(),
    )
    for made, kept in zip((pack, pack.with_suffix(".idx")), files, strict=True):
        sync(made)
        made.replace(kept)
    return settled


def _commits(by: ByGit, limits: Limits, *, name: bool) -> list[bytes] | None:
    """The commits in the pack, unless they need no `name`; None if an object is over a limit, or
    may be by what its deltas make."""
    largest = min(limits.blob_bytes, limits.delta_result_bytes)
    commits: list[bytes] = []
    total, cut = 0, b""
    with start_here(
        by.git,
        by.place,
        *("cat-file", "--batch-all-objects", "--unordered"),
        "--batch-check=%(objectname) %(objecttype) %(objectsize)",
    ) as listing:
        assert listing.stdout is not None
        while more := listing.stdout.read(_READ_BYTES):
            lines, _, cut = (cut + more).rpartition(b"\n")
            commits += _COMMIT.findall(lines) if name else ()
            for kind, digits in _SIZED.findall(lines):
                size = int(digits)
                total += size
                if size > (largest if kind == b"b" else limits.tree_bytes):
                    listing.kill()
                    return None
    return commits if listing.returncode == 0 and total <= limits.inflated_bytes else None


def _graft(by: ByGit, commits: list[bytes]) -> None:
    """Have git take commits whose parents are not in the pack for ones without."""
    with start_here(
        by.git, by.place, *("rev-list", "--no-walk=unsorted", "--parents", "--stdin"), given=commits
    ) as listing:
        assert listing.stdout is not None
        inside = set(commits)
        cut = [line[:40] for line in listing.stdout if not inside.issuperset(line.split())]
    (by.place / "shallow").write_bytes(b"".join(b"%s\n" % one for one in cut))


def _walk(by: ByGit) -> subprocess.Popen[bytes]:
    """Lists the objects that the tips reach in the pack."""
    return start_here(
        by.git,
        by.place,
        *("rev-list", "--objects", "--no-object-names", "--ignore-missing", "--missing=allow-any"),
        "--stdin",
        given=[tip.hex().encode() for tip in by.tips],
    )


def _received(walk: subprocess.Popen[bytes], completed: Set[bytes]) -> int:
    """How many are listed that were not added here. Each is listed once."""
    assert walk.stdout is not None
    added = {b"%s\n" % name.hex().encode() for name in completed}
    count = sum(line not in added for line in walk.stdout) if added else _lines(walk.stdout)
    walk.wait()
    return count


def _lines(output: IO[bytes]) -> int:
    count = 0
    while more := output.read(_READ_BYTES):
        count += more.count(b"\n")
    return count
