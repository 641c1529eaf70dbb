"""Housekeeping: what nobody uses is removed, small packs are joined, whole repositories proved.

Never in the way of a push: a repository's row is locked only while its list of packs is exchanged.
Called through `GitStore`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore
from sqlalchemy import Connection, delete, func, select, update

from git_store import quarantine
from git_store.database import Database
from git_store.errors import GitStoreError, StorageFailed
from git_store.graph import Graph
from git_store.index import index_pack
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.pack import Pack
from git_store.packfile import COMMIT, SLICE, TAG, TRAILER
from git_store.packs import PREFIX, Packs
from git_store.packwriter import PackWriter
from git_store.pktline import SideBand
from git_store.push import Pushes
from git_store.quarantine import Arrived
from git_store.repos import lock
from git_store.select import Selected, Selection, Walked
from git_store.tables import packs, push_events, refs, repositories, repository_packs

_BATCH = 500
_IN_MEMORY_BYTES = 1 << 20
_PROBLEMS_MAX = 100


@dataclass(frozen=True, slots=True)
class Proof:
    """What `GitStore.fsck` found. The repository is whole if there are no problems."""

    packs: int
    objects: int
    refs: int
    problems: tuple[str, ...]


class Upkeep:
    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        pool: Packs,
        pushes: Pushes,
        *,
        quarantined: Path,
        limits: Limits,
    ) -> None:
        self._database = database
        self._objects = objects
        self._pool = pool
        self._pushes = pushes
        self._quarantined = quarantined
        self._limits = limits

    # --- sweeping ---------------------------------------------------------------------------------

    def sweep(self, *, before_ms: int) -> int:
        """Remove what is older than `before_ms` and unused. Safe beside pushes: a pack is either
        younger, or on a list. Raises StorageFailed; what is left then is the next sweep's."""
        try:
            removed = self._drop_unused_packs(before_ms)
            removed += self._drop_orphans(before_ms)
        except (BaseError, OSError) as error:
            raise StorageFailed(f"packs cannot be swept: {error}") from error
        removed += quarantine.sweep(self._quarantined, before_ms=before_ms)
        handled = delete(push_events).where(push_events.c.handled_ms < before_ms)
        with self._database.writing() as connection:
            removed += connection.execute(handled).rowcount
        return removed

    def _drop_unused_packs(self, before_ms: int) -> int:
        """Rows first, then objects: an object without a row is an orphan for the next sweep."""
        used = select(repository_packs.c.pack_id).where(repository_packs.c.pack_id == packs.c.id)
        since = func.coalesce(packs.c.released_ms, packs.c.created_ms)
        unused = since < before_ms, ~used.exists()
        removed = 0
        while True:
            with self._database.writing() as connection:
                found = select(packs.c.id, packs.c.data.is_(None)).where(*unused).limit(_BATCH)
                rows = connection.execute(found).all()
                gone = [pack_id for pack_id, _ in rows]
                connection.execute(delete(packs).where(packs.c.id.in_(gone)))
            self._pool.discard([pack_id for pack_id, large in rows if large])
            removed += len(rows)
            if len(rows) < _BATCH:
                return removed

    def _drop_orphans(self, before_ms: int) -> int:
        """Objects of pushes that died between their upload and their transaction."""
        removed = 0
        for page in obstore.list(self._objects, PREFIX, chunk_size=_BATCH):
            old = {
                item["path"].rsplit("/", 1)[-1].partition(".")[0]
                for item in page
                if item["last_modified"].timestamp() * 1000 < before_ms
            }
            with self._database.reading() as connection:
                known = set(
                    connection.execute(select(packs.c.id).where(packs.c.id.in_(old))).scalars()
                )
            orphans = sorted(old - known)
            self._pool.discard(orphans)
            removed += len(orphans)
        return removed

    # --- joining ----------------------------------------------------------------------------------

    def crowded(self, limit: int) -> list[str]:
        """Repositories with more packs than are quickly looked through."""
        number = func.count()
        found = (
            select(repository_packs.c.repository_id)
            .group_by(repository_packs.c.repository_id)
            .having(number > self._limits.repository_packs)
            .order_by(number.desc())
            .limit(limit)
        )
        with self._database.reading() as connection:
            return list(connection.execute(found).scalars())

    def join(self, repository_id: str) -> int:
        """Copy the objects of small packs into one, and list that instead. Returns how many packs
        it replaces. Nothing is dropped, so pushes and fetches beside it need not know."""
        old = self._small(repository_id)
        if len(old) < 2:
            return 0
        names = dict.fromkeys(name for pack in old for name in _by_offset(pack))
        with self._joined(old, list(names)) as arrived, self._database.writing() as connection:
            lock(connection, repository_id)
            listed = _listed(connection, repository_id)
            if arrived is None or not {pack.id for pack in old} <= listed:
                return 0  # another process was here first
            self._exchange(connection, repository_id, old, arrived)
        return len(old)

    def _small(self, repository_id: str) -> list[Pack]:
        """The smallest packs, up to where the next is larger than twice all of them together: so
        each object is copied a logarithmic number of times in its life."""
        listed = (
            select(packs.c.id, packs.c.size)
            .join(repository_packs, repository_packs.c.pack_id == packs.c.id)
            .where(repository_packs.c.repository_id == repository_id)
            .order_by(packs.c.size, packs.c.id)
        )
        chosen: list[str] = []
        total = 0
        with self._database.reading() as connection:
            for pack_id, size in connection.execute(listed):
                if len(chosen) > 1 and size > 2 * total:
                    break
                chosen.append(pack_id)
                total += size
        return self._pool.open(sorted(chosen))

    # --- collecting -------------------------------------------------------------------------------

    def collect(self, repository_id: str, *, before_ms: int) -> int:
        """Drop objects that nothing reaches, from packs older than `before_ms`. Returns how many.

        What refs point at is kept, hidden ones included, and so is what younger packs refer to:
        the repository stays closed. A push beside it looks again (`repositories.generation`).
        """
        with self._database.reading() as connection:
            starts = _pointed_at(connection, repository_id)
        everything = Objects(self._pool.of_repository(repository_id))
        old_ids = self._older(repository_id, before_ms)
        old = [pack for pack in everything.packs if pack.id in old_ids]
        reached = set(_reachable(everything, starts | self._needs(everything.packs, old_ids)))
        names = dict.fromkeys(name for pack in old for name in _by_offset(pack))
        kept = [name for name in names if name in reached]
        if len(kept) == len(names):
            return 0
        with self._joined(old, kept) as arrived, self._database.writing() as connection:
            lock(connection, repository_id)
            same_packs = _listed(connection, repository_id) == {p.id for p in everything.packs}
            if not same_packs or not _pointed_at(connection, repository_id) <= starts:
                return 0  # a push may need what was to be dropped: another time
            self._exchange(connection, repository_id, old, arrived)
            connection.execute(
                update(repositories)
                .where(repositories.c.id == repository_id)
                .values(generation=repositories.c.generation + 1)
            )
        return len(names) - len(kept)

    def _needs(self, everything: Sequence[Pack], old_ids: set[str]) -> set[bytes]:
        """What younger packs refer to outside of themselves."""
        needed: set[bytes] = set()
        for pack in everything:
            if pack.id not in old_ids:
                indexed = index_pack(pack.data, limits=self._limits, lookup=lambda name: None)
                needed |= indexed.needs
        return needed

    def _older(self, repository_id: str, before_ms: int) -> set[str]:
        found = (
            select(packs.c.id)
            .join(repository_packs, repository_packs.c.pack_id == packs.c.id)
            .where(repository_packs.c.repository_id == repository_id)
            .where(packs.c.created_ms < before_ms)
        )
        with self._database.reading() as connection:
            return set(connection.execute(found).scalars())

    # --- exchanging packs -------------------------------------------------------------------------

    @contextmanager
    def _joined(self, old: Sequence[Pack], names: Sequence[bytes]) -> Iterator[Arrived | None]:
        """A new pack with the named objects of old ones, uploaded; None without names."""
        if not names:
            yield None
            return
        with (
            tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spool,
            self._pushes.quarantine() as place,
        ):
            side = SideBand(spool, large=False, quiet=True)
            selected = Selected(list(names), set())
            PackWriter(Objects(old), selected, side, thin=False, near=True).send()
            spool.seek(0)
            arrived = place.rebuild(_chunks(spool))
            self._pool.upload(arrived.new)
            yield arrived

    def _exchange(
        self,
        connection: Connection,
        repository_id: str,
        old: Sequence[Pack],
        arrived: Arrived | None,
    ) -> None:
        """List the new pack instead of the old ones, which stay until nobody can be reading."""
        self._pool.release(connection, repository_id, [pack.id for pack in old])
        if arrived is not None:
            self._pool.insert(connection, repository_id, arrived.new)

    # --- proving ----------------------------------------------------------------------------------

    def prove(self, repository_id: str) -> Proof:
        """Read every object of a repository and follow every reference, one step."""
        with self._database.reading() as connection:
            pointers = connection.execute(
                select(refs.c.name, refs.c.sha, refs.c.peeled).where(
                    refs.c.repository_id == repository_id
                )
            ).all()
            listed = sorted(_listed(connection, repository_id))
        objects = Objects([])
        problems: list[str] = []
        for pack_id in listed:
            try:
                objects.packs += self._pool.open([pack_id])
            except GitStoreError as error:
                problems.append(f"{pack_id} cannot be read: {error}")
        problems += (problem for pack in objects.packs for problem in self._check(pack, objects))
        for name, sha, peeled in pointers:
            try:
                target, _, tags = objects.peel(bytes.fromhex(sha))
                if peeled != (target.hex() if tags else None):
                    problems.append(f"{name} should be peeled to {target.hex()}, not {peeled}")
            except (GitStoreError, ValueError) as error:
                problems.append(f"{name}: {error}")
        return Proof(
            packs=len(listed),
            objects=len({name for pack in objects.packs for name in pack.index.names()}),
            refs=len(pointers),
            problems=tuple(problems[:_PROBLEMS_MAX]),
        )

    def _check(self, pack: Pack, objects: Objects) -> Iterator[str]:
        digest = hashlib.sha1()
        end = len(pack.data) - TRAILER
        for at in range(0, end, SLICE):
            digest.update(pack.data[at : min(end, at + SLICE)])
        if digest.digest() != pack.data[end:]:
            yield f"{pack.id} is damaged: its checksum is wrong"
            return
        try:
            indexed = index_pack(pack.data, limits=self._limits, lookup=lambda name: None)
        except GitStoreError as error:
            yield f"{pack.id} is damaged: {error}"
            return
        if [name for name, _, _ in indexed.entries] != pack.index.names():
            yield f"{pack.id} has an index that is not its own"
        for name in sorted(indexed.needs):
            if not objects.has(name):
                yield f"{name.hex()} is missing; {pack.id} refers to it"


def _by_offset(pack: Pack) -> list[bytes]:
    """The names of a pack's objects in the order they lie in it."""
    found = sorted(zip(pack.index.offsets(), pack.index.names(), strict=True))
    return [name for _, name in found]


def _reachable(objects: Objects, starts: Iterable[bytes]) -> list[bytes]:
    graph = Graph(objects)
    selection = Selection(objects, graph, filtered=None, thin=False)
    commits: set[bytes] = set()
    for start in starts:
        target, kind, tags = objects.peel(start)
        for tag in tags:
            selection.add(tag, TAG)
        if kind == COMMIT:
            commits.add(target)
        else:
            selection.add(target, kind)
    selection.add_commits(Walked(list(graph.newest_first(commits)), set()), set())
    return list(selection.selected().names)


def _listed(connection: Connection, repository_id: str) -> set[str]:
    found = select(repository_packs.c.pack_id).where(
        repository_packs.c.repository_id == repository_id
    )
    return set(connection.execute(found).scalars())


def _pointed_at(connection: Connection, repository_id: str) -> set[bytes]:
    found = select(refs.c.sha).where(refs.c.repository_id == repository_id)
    return {bytes.fromhex(sha) for sha in connection.execute(found).scalars()}


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    while chunk := spool.read(SLICE):
        yield chunk
