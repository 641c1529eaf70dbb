"""Questions about a repository's history: its log, what changed, all of it as an archive.

Reads only, as far as the actor may see; over queries, which knows repositories and refs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ci_platform.errors import InvalidRequest
from ci_platform.model import Actor
from ci_platform.ports.hosting import Commit, FileDiff
from ci_platform.queries import Queries

LOG_MAX = 200
FORMATS = ("tar.gz", "zip")
_CURSOR = re.compile(r"([0-9a-f]{40}):([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Archive:
    name: str  # of the file
    kind: str  # tar.gz | zip
    commit: str
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Changes:
    before: str | None
    after: str
    paths: Sequence[str]


@dataclass(frozen=True, slots=True)
class Differences:
    before: str | None
    after: str
    files: Sequence[FileDiff]
    more: bool


@dataclass(frozen=True, slots=True)
class LogPage:
    commits: Sequence[Commit]
    cursor: str | None  # of the next page; None: there is none


@dataclass(frozen=True, slots=True)
class GitQueries:
    queries: Queries

    def log(
        self,
        actor: Actor,
        owner: str,
        name: str,
        ref: str | None,
        *,
        limit: int,
        cursor: str | None = None,
    ) -> LogPage:
        """A ref's commits, newest first; the default branch's if none is named. A cursor goes on
        from the commit that the first page began with, wherever the ref is by now."""
        repository = self.queries.repository(actor, owner, name)
        start, skip = (ref, 0) if cursor is None else _place(cursor)
        commit = self._commit(actor, owner, name, start)
        limit = max(1, min(limit, LOG_MAX))
        found = self.queries.repositories.log(repository.id, commit, skip=skip, limit=limit + 1)
        after = f"{commit}:{skip + limit}" if len(found) > limit else None
        return LogPage(found[:limit], after)

    def diff(
        self, actor: Actor, owner: str, name: str, *, base: str | None, head: str | None
    ) -> Differences:
        """How two refs differ, file by file; without `base`, all of `head` is new."""
        repository = self.queries.repository(actor, owner, name)
        new = self._commit(actor, owner, name, head)
        old = None if base is None else self._commit(actor, owner, name, base)
        files, more = self.queries.repositories.diff(repository.id, old, new)
        return Differences(old, new, files, more)

    def changes(
        self, actor: Actor, owner: str, name: str, *, before: str | None, after: str | None
    ) -> Changes:
        """Paths of files that differ between two refs; without `before`, all of `after`."""
        repository = self.queries.repository(actor, owner, name)
        new = self._commit(actor, owner, name, after)
        old = None if before is None else self._commit(actor, owner, name, before)
        return Changes(old, new, self.queries.source.changed_paths(repository.id, old, new))

    def archive(self, actor: Actor, owner: str, name: str, file: str) -> Archive:
        """`file` is a ref and a format: `main.tar.gz`, `refs/tags/v1.zip`."""
        kind = next((kind for kind in FORMATS if file.endswith(f".{kind}")), None)
        if kind is None:
            raise InvalidRequest("an archive ends in .tar.gz or .zip", field="file")
        repository = self.queries.repository(actor, owner, name)
        commit = self._commit(actor, owner, name, file.removesuffix(f".{kind}"))
        top = f"{repository.name}-{commit[:12]}"
        pieces = self.queries.repositories.archive(
            repository.id, commit, kind=kind, prefix=f"{top}/"
        )
        first = list(itertools.islice(pieces, 1))  # what is wrong at once is said properly
        return Archive(f"{top}.{kind}", kind, commit, itertools.chain(first, pieces))

    def _commit(self, actor: Actor, owner: str, name: str, ref: str | None) -> str:
        return self.queries.tree(actor, owner, name, "", ref).commit


def _place(cursor: str) -> tuple[str, int]:
    """Where a page of a log begins."""
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise InvalidRequest("this is no cursor of a log", field="cursor")
    return found[1], int(found[2])
