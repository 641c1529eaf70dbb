"""Questions about a repository's history: its log, what changed, all of it as an archive.

Reads only, as far as the actor may see; over queries.py, which knows repositories and refs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ci_platform.errors import InvalidRequest
from ci_platform.model import Actor
from ci_platform.ports import Commit
from ci_platform.queries import Queries

LOG_MAX = 200
FORMATS = ("tar.gz", "zip")


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
class GitQueries:
    queries: Queries

    def log(
        self, actor: Actor, owner: str, name: str, ref: str | None, *, limit: int
    ) -> Sequence[Commit]:
        """A ref's commits, newest first; the default branch's if none is named."""
        repository = self.queries.repository(actor, owner, name)
        commit = self._commit(actor, owner, name, ref)
        limit = max(1, min(limit, LOG_MAX))
        return self.queries.repositories.log(repository.id, commit, limit=limit)

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
