"""A `.git` directory for a checkout: a commit with as much of its history as is asked for.

What `git clone --depth` leaves, without a remote: the objects as one pack, HEAD on the commit, and
an index, so that git finds the files of the checkout unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dulwich.index import Index, IndexEntry
from dulwich.object_store import iter_tree_contents
from dulwich.repo import Repo

from git_store.errors import OverLimit
from git_store.graph import Graph
from git_store.objects import Objects
from git_store.packwriter import PackWriter
from git_store.pktline import SideBand
from git_store.select import Job, TooMany, select
from git_store.shallow import Deepen, boundary

HISTORY_OBJECTS_MAX = 1_000_000


def write_history(objects: Objects, graph: Graph, commit: bytes, into: Path, *, depth: int) -> None:
    """Make `into/.git` with `depth` generations of commits. Raises OverLimit."""
    limit = boundary(graph, Deepen(depth=depth), [commit], frozenset())
    job = Job(
        commits=[commit],
        common=(),
        others=(),
        tags=(),
        cut=limit.cut,
        opened=frozenset(),
        client_cut=frozenset(),
        filter=None,
        thin=False,
        near=True,
    )
    try:
        selected = select(objects, graph, job, most=HISTORY_OBJECTS_MAX)
    except TooMany as error:
        raise OverLimit(
            f"the last {depth} commits have more than {HISTORY_OBJECTS_MAX} objects",
            limit="HISTORY_OBJECTS_MAX",
        ) from error
    repository = Repo.init(str(into))
    try:
        pack, finish, abort = repository.object_store.add_pack()
        try:
            PackWriter(
                objects, selected, SideBand(_Raw(pack), large=False), thin=False, near=True
            ).send()
        except BaseException:
            abort()
            raise
        finish()
        control = into / ".git"
        if limit.cut:
            lines = sorted(f"{name.hex()}\n" for name in limit.cut)
            (control / "shallow").write_text("".join(lines))
        (control / "HEAD").write_text(f"{commit.hex()}\n")
        _write_index(repository, graph.get(commit).tree.hex().encode(), control / "index")
    finally:
        repository.close()


class _Raw:
    """A file as a place to send to."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes | bytearray | memoryview) -> None:
        self._file.write(bytes(content))

    def flush(self) -> None:
        self._file.flush()


def _write_index(repository: Repo, tree: bytes, path: Path) -> None:
    """Without sizes and times: git looks at each file once, and then knows them."""
    index = Index(str(path), read=False)
    for entry in iter_tree_contents(repository.object_store, tree):  # type: ignore[arg-type]
        assert entry.path is not None and entry.mode is not None and entry.sha is not None
        index[entry.path] = IndexEntry(0, 0, 0, 0, entry.mode, 0, 0, 0, entry.sha)
    index.write()
