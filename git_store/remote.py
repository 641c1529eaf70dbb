"""Fetching from another git server, by dulwich's client, through the checks of a push.

A remote is not trusted: the address it resolves to must be public, redirects stay on its host, and
what it sends is counted against a size and a time. Called through `GitStore.fetch_remote`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import IO

from dulwich.client import FetchPackResult, HttpGitClient, LocalGitClient
from dulwich.object_store import ObjectStoreGraphWalker
from dulwich.objects import ObjectID
from dulwich.refs import Ref

from git_store import refs
from git_store.database import Database
from git_store.errors import (
    BadName,
    GitStoreError,
    ObjectNotFound,
    PushRejected,
    RemoteFailed,
)
from git_store.graph import Graph
from git_store.limits import Limits
from git_store.names import KEEP, is_sha, ref_problem
from git_store.objects import Objects
from git_store.packfile import COMMIT
from git_store.packs import Packs
from git_store.push import Pushes
from git_store.quarantine import Arrived
from git_store.remote_http import Address, Allowance, GuardedPools
from git_store.repos import lock

log = logging.getLogger(__name__)

_IN_MEMORY_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_HAVES_MAX = 1000  # refs of ours that a remote is told of


@dataclass(frozen=True, slots=True)
class Fetch:
    """What to get, and what to call it here."""

    repository_id: str
    address: Address
    ref: str | None
    commit: str | None
    keep: str | None


class Remotes:
    def __init__(self, database: Database, packs: Packs, pushes: Pushes, limits: Limits) -> None:
        self._database = database
        self._packs = packs
        self._pushes = pushes
        self._limits = limits

    def fetch(self, fetch: Fetch) -> str:
        """See `GitStore.fetch_remote`."""
        self._check(fetch)
        if fetch.commit is not None:
            here = self._store(fetch, None, self._objects(fetch), fetch.commit)
            if here is not None:
                return here
        # The ref first. It may have moved on and left the commit: many servers hand out a commit
        # by its id, as long as something of theirs reaches it.
        for wanted in (fetch.ref, fetch.commit):
            found = None if wanted is None else self._try(fetch, wanted)
            if found is not None:
                return found
        raise RemoteFailed(
            f"{fetch.address.shown} has no commit {fetch.commit} in {fetch.ref or 'any ref'}"
        )

    def _check(self, fetch: Fetch) -> None:
        if fetch.ref is None and fetch.commit is None:
            raise RemoteFailed("a ref or a commit to fetch must be named")
        if fetch.commit is not None and not is_sha(fetch.commit):
            raise BadName(f"{fetch.commit[:100]!r} is not a commit id", field="commit")
        if fetch.keep is not None and ref_problem(KEEP + fetch.keep, self._limits.ref_bytes):
            raise BadName(f"{fetch.keep[:100]!r} cannot be the name of a kept ref", field="keep")

    def _objects(self, fetch: Fetch) -> Objects:
        return Objects(self._packs.of_repository(fetch.repository_id))

    def _try(self, fetch: Fetch, wanted: str) -> str | None:
        """Fetch a ref or an id. None if the commit asked for did not come with it."""
        generation, room = self._pushes.standing(fetch.repository_id)
        objects = self._objects(fetch)
        with (
            tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spool,
            self._pushes.quarantine() as quarantine,
        ):
            tip = self._transfer(fetch, wanted, objects, spool)
            arrived = None
            if spool.tell():
                spool.seek(0)
                arrived = quarantine.admit(
                    chunks_of(spool),
                    objects,
                    tips=[bytes.fromhex(tip)],
                    progress=lambda text: None,
                    room=room,
                )
            if arrived is not None:
                objects.packs.append(arrived.pack)
            return self._store(fetch, arrived, objects, fetch.commit or tip, generation)

    def _transfer(self, fetch: Fetch, wanted: str, objects: Objects, spool: IO[bytes]) -> str:
        """Have dulwich's client fetch into the spool. Returns the id of what was wanted."""
        tips: list[str] = []

        def choose(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:
            tips.append(_tip(wanted, refs, fetch.address.shown))
            name = bytes.fromhex(tips[0])
            return [] if objects.has(name) else [ObjectID(tips[0].encode())]

        walker = haves(self._database, fetch.repository_id, objects)
        fetch_into(spool, fetch.address, choose, walker, self._limits)
        return tips[0]

    def _store(
        self,
        fetch: Fetch,
        arrived: Arrived | None,
        objects: Objects,
        sha: str,
        generation: int | None = None,
    ) -> str | None:
        """Keep what arrived and the commit under a hidden ref; None if the commit is not there."""
        name = bytes.fromhex(sha)
        if not objects.has(name):
            return None
        commit, kind, _ = objects.peel(name)
        if kind != COMMIT:
            raise RemoteFailed(f"{sha} is not a commit")
        if arrived is not None:
            self._packs.upload(arrived.new)
        kept = KEEP + (fetch.keep or f"fetched/{commit.hex()}")
        with self._database.writing() as connection:
            if generation not in (None, lock(connection, fetch.repository_id)):
                raise PushRejected("the repository is being cleaned up; fetch again")
            if arrived is not None:
                self._packs.insert(connection, fetch.repository_id, arrived.new)
            refs.write(connection, fetch.repository_id, {kept: (commit.hex(), None)})
        return commit.hex()


def fetch_into(
    spool: IO[bytes],
    address: Address,
    choose: Callable[..., list[ObjectID]],
    walker: ObjectStoreGraphWalker,
    limits: Limits,
) -> FetchPackResult:
    """Have dulwich's client fetch what `choose` picks, within the limits. Raises RemoteFailed."""
    allowance = Allowance(limits.push_bytes, limits.remote_seconds)

    def keep(data: bytes) -> int:
        allowance.take(len(data))
        return spool.write(data)

    try:
        with closing(GuardedPools(address, allowance)) as pools:
            client = _client(address, pools)
            return client.fetch_pack(address.path, choose, walker, keep)
    except GitStoreError:
        raise
    except Exception as error:  # a remote can make the client fail in any way
        log.info("fetching from %s failed", address.shown, exc_info=True)
        raise RemoteFailed(f"fetching from {address.shown} failed: {_reason(error)}") from error


def haves(database: Database, repository_id: str, objects: Objects) -> ObjectStoreGraphWalker:
    """Tells a remote what is here already."""
    graph = Graph(objects)
    with database.reading() as connection:
        rows = connection.execute(refs.visible().limit(_HAVES_MAX), {"repository": repository_id})
        targets = {peeled or sha for _, sha, peeled in rows}
    heads = [sha for sha in targets if objects.is_commit(bytes.fromhex(sha))]

    def parents(commit: ObjectID) -> list[ObjectID]:
        node = graph.get(bytes.fromhex(commit.decode()))
        return [ObjectID(parent.hex().encode()) for parent in node.parents]

    return ObjectStoreGraphWalker([ObjectID(sha.encode()) for sha in heads], parents)


def _client(address: Address, pools: GuardedPools) -> HttpGitClient | LocalGitClient:
    if address.scheme == "file":
        return LocalGitClient()
    return HttpGitClient(
        address.base, pool_manager=pools, username=address.username, password=address.password
    )


def _tip(wanted: str, theirs: Mapping[Ref, ObjectID], shown: str) -> str:
    """The id behind a ref name among a remote's refs; an id stands for itself."""
    if is_sha(wanted):
        return wanted
    for candidate in (wanted, f"refs/heads/{wanted}", f"refs/tags/{wanted}"):
        found = theirs.get(Ref(candidate.encode()))
        if found is not None:
            sha = found.decode("ascii", "replace")
            if is_sha(sha):
                return sha
    raise ObjectNotFound(f"{shown} has no ref {wanted!r}")


def chunks_of(spool: IO[bytes]) -> Iterator[bytes]:
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
