"""Taking over another repository: its branches and tags become ours, as one push.

What is fetched goes the way of every push: quarantine, checks, transaction, event. Called through
`GitStore.import_remote`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

from dulwich.objects import ObjectID
from dulwich.refs import Ref

from git_store.database import Database
from git_store.errors import PushRejected, RemoteFailed
from git_store.limits import Limits
from git_store.names import is_sha
from git_store.objects import Objects
from git_store.packs import Packs
from git_store.push import Pusher, Pushes, PushEvent, RefChange, Report, Request
from git_store.refs import Refs
from git_store.remote import chunks_of, fetch_into, haves
from git_store.remote_http import Address
from git_store.repos import Repositories, Repository, RepositoryEventKind

_IN_MEMORY_BYTES = 1 << 20
IMPORTED = RepositoryEventKind.IMPORTED
_SHA256_DIGITS = 64
_TAKEN = ("refs/heads/", "refs/tags/")


@dataclass(frozen=True, slots=True)
class Import:
    """What to take over, and into what."""

    repository: Repository
    address: Address
    pusher: Pusher
    prune: bool  # drop branches and tags that the remote does not have
    options: Sequence[str]  # as `git push -o`


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import."""

    event: PushEvent | None  # None: everything was here already
    refused: Mapping[str, str]  # ref -> why it was not taken over

    @property
    def moved(self) -> int:
        return 0 if self.event is None else len(self.event.changes)


class Mirrors:
    def __init__(
        self,
        database: Database,
        packs: Packs,
        refs: Refs,
        pushes: Pushes,
        repositories: Repositories,
        limits: Limits,
    ) -> None:
        self._database = database
        self._packs = packs
        self._refs = refs
        self._pushes = pushes
        self._repositories = repositories
        self._limits = limits

    def run(self, wanted: Import) -> Imported:
        """See `GitStore.import_remote`."""
        repository_id = wanted.repository.id
        objects = Objects(self._packs.of_repository(repository_id))
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spool:
            theirs, head = self._fetch(wanted, objects, spool)
            self._follow_head(wanted, theirs, head)
            changes = list(self._changes(wanted, theirs))
            if not changes:
                return Imported(None, {})
            fetched = spool.tell() > 0
            spool.seek(0)
            repository = self._repositories.by_id(repository_id)
            report = self._pushes.receive(
                Request(
                    repository=repository,
                    pusher=wanted.pusher,
                    changes=changes,
                    options=wanted.options,
                    chunks=chunks_of(spool) if fetched else None,
                    also=partial(self._repositories.tell, kind=IMPORTED, of=[repository]),
                ),
                say=lambda text: None,
                progress=lambda text: None,
            )
        return _concluded(report, wanted.address.shown)

    def _fetch(
        self, wanted: Import, objects: Objects, spool: IO[bytes]
    ) -> tuple[dict[str, str], str | None]:
        """Fetch what is not here. The remote's branches and tags, and what its HEAD names."""

        def choose(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:
            new = {sha for sha in _taken(refs).values() if not objects.has(bytes.fromhex(sha))}
            return [ObjectID(sha.encode()) for sha in sorted(new)]

        found = fetch_into(
            spool,
            wanted.address,
            choose,
            haves(self._database, wanted.repository.id, objects),
            self._limits,
        )
        head = found.symrefs.get(Ref(b"HEAD"))
        return _taken(found.refs), None if head is None else head.decode("utf-8", "replace")

    def _follow_head(self, wanted: Import, theirs: Mapping[str, str], head: str | None) -> None:
        """The remote's default branch becomes ours, unless it has the one that ours is."""
        ours = f"refs/heads/{wanted.repository.default_branch}"
        if head in theirs and ours not in theirs and head is not None:
            branch = head.removeprefix("refs/heads/")
            self._repositories.set_default_branch(wanted.repository.id, branch)

    def _changes(self, wanted: Import, theirs: Mapping[str, str]) -> Iterator[RefChange]:
        ours = {ref.name: ref.sha for ref in self._refs.all(wanted.repository.id, _TAKEN)}
        for name, sha in sorted(theirs.items()):
            if ours.get(name) != sha:
                yield RefChange(name, ours.get(name), sha)
        if wanted.prune and ours and not theirs:
            # More often a server that is broken than one that was emptied on purpose.
            raise RemoteFailed(f"{wanted.address.shown} has no branches; what is here stays")
        if wanted.prune:
            for name in sorted(ours.keys() - theirs.keys()):
                yield RefChange(name, ours[name], None)


def _taken(refs: Mapping[Ref, ObjectID | None]) -> dict[str, str]:
    """Branches and tags by name; what tags are peeled to is found out again here. Raises
    RemoteFailed: to leave a ref out would be to say that the remote does not have it."""
    taken: dict[str, str] = {}
    for raw, target in refs.items():
        name = raw.decode("utf-8", "surrogateescape")
        if not name.startswith(_TAKEN) or name.endswith("^{}") or target is None:
            continue
        sha = target.decode("ascii", "replace")
        if len(sha) == _SHA256_DIGITS:
            raise RemoteFailed("the remote names objects by sha256; only sha1 can be taken over")
        if not is_sha(sha):
            raise RemoteFailed(f"the remote's {name[:200]!r} points at no object id")
        taken[name] = sha
    return taken


def _concluded(report: Report, shown: str) -> Imported:
    if report.storage is not None:
        raise report.storage
    if report.unpack is not None:
        raise RemoteFailed(f"{shown} is damaged, or larger than allowed: {report.unpack}")
    if report.message is not None:
        raise PushRejected(report.message)
    refused = {ref: why for ref, why in report.refs.items() if why is not None}
    return Imported(report.event, refused)
