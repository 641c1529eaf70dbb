"""Housekeeping: what no repository uses any more is removed, never in the way of a push."""

from __future__ import annotations

from pathlib import Path

import obstore
from obstore.store import ObjectStore
from sqlalchemy import delete, select

from git_store import quarantine
from git_store.database import Database
from git_store.packs import PREFIX, Packs
from git_store.tables import packs, push_events, repository_packs

_BATCH = 500


class Upkeep:
    def __init__(
        self, database: Database, objects: ObjectStore, quarantined: Path, pool: Packs
    ) -> None:
        self._database = database
        self._objects = objects
        self._quarantined = quarantined
        self._pool = pool

    def sweep(self, *, before_ms: int) -> int:
        """Remove what is older than `before_ms` and unused. Safe beside pushes: a pack is either
        younger, or on a list."""
        removed = self._drop_unused_packs(before_ms)
        removed += self._drop_orphans(before_ms)
        removed += quarantine.sweep(self._quarantined, before_ms=before_ms)
        handled = delete(push_events).where(push_events.c.handled_ms < before_ms)
        with self._database.writing() as connection:
            removed += connection.execute(handled).rowcount
        return removed

    def _drop_unused_packs(self, before_ms: int) -> int:
        """Rows first, then objects: an object without a row is an orphan for the next sweep."""
        used = select(repository_packs.c.pack_id).where(repository_packs.c.pack_id == packs.c.id)
        unused = packs.c.created_ms < before_ms, ~used.exists()
        removed = 0
        while True:
            with self._database.writing() as connection:
                found = select(packs.c.id, packs.c.data.is_(None)).where(*unused).limit(_BATCH)
                rows = connection.execute(found).all()
                gone = [pack_id for pack_id, _ in rows]
                connection.execute(delete(packs).where(packs.c.id.in_(gone), ~used.exists()))
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
