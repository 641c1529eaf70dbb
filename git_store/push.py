"""Receiving a push: what a push is, whom it is told to, and the one transaction that makes it so.

A pack is taken into quarantine and checked, then one transaction checks every old value, adds the
pack, moves the refs and writes the event. receive.py speaks the protocol above this; edits.py
comes in here too.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from git_store import refs
from git_store.database import Clock, Database, new_id
from git_store.direct import Direct
from git_store.errors import (
    BadPack,
    GitStoreError,
    OverLimit,
    PushRejected,
    RepoNotFound,
    StorageFailed,
)
from git_store.files import Files
from git_store.limits import Limits
from git_store.names import HIDDEN, ref_problem
from git_store.objects import Objects
from git_store.packfile import COMMIT
from git_store.packs import Packs
from git_store.quarantine import Arrived, Quarantine
from git_store.repos import Repository, lock
from git_store.tables import push_events, repositories

log = logging.getLogger(__name__)

_TRIES = 3  # while objects are being removed beside the push
_MARK_SECONDS = 0.5  # handled events are marked together: a transaction each would double a push
_STANDING = Direct(
    select(repositories.c.generation, repositories.c.pack_bytes).where(
        repositories.c.id == bindparam("id")
    )
)
_ADD_EVENT = Direct(insert(push_events))
_MARK = Direct(
    update(push_events)
    .where(push_events.c.id == bindparam("event"), push_events.c.handled_ms.is_(None))
    .values(handled_ms=bindparam("now_ms"))
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pusher:
    """Who pushes: as the platform names them; the git store only writes it down."""

    id: str | None
    name: str


@dataclass(frozen=True, slots=True)
class RefChange:
    ref: str  # full name
    old: str | None  # None: created
    new: str | None  # None: deleted


@dataclass(frozen=True, slots=True)
class Push:
    """A push that has passed every check but is not visible to anyone yet."""

    repository: Repository
    pusher: Pusher
    changes: tuple[RefChange, ...]
    options: tuple[str, ...]  # git push -o ...
    files: Files  # also sees the new objects


@dataclass(frozen=True, slots=True)
class PushEvent:
    """A push that happened. Kept in the outbox until `GitStore.mark_handled`."""

    id: str  # push_..., sorts by time
    repository_id: str
    pusher: Pusher
    changes: tuple[RefChange, ...]  # only the accepted ones; never hidden refs
    options: tuple[str, ...]
    at_ms: int


class PushListener(Protocol):
    """Hears of every push, by HTTP or by `GitStore.commit`. Called from any thread.

    `before` is called once for a push, when all is checked and nothing is visible; raising
    PushRejected refuses the whole push with that message. `after` is called when the push is
    committed, before the client has its answer: what it says appears in the pusher's terminal as
    `remote: ...`. When `after` returns, the event is marked handled, with others, soon; when it
    raises, the pusher is told and the event stays in the outbox. So `after` may see the same event
    again.
    """

    def before(self, push: Push) -> None: ...

    def after(self, event: PushEvent, say: Say) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A push as a client asks for it; `chunks` is its pack, None when it only deletes."""

    repository: Repository
    pusher: Pusher
    changes: Sequence[RefChange]
    options: Sequence[str] = ()
    chunks: Iterable[bytes] | None = None
    atomic: bool = False
    also: Callable[[Connection], None] | None = None  # done in its transaction, if a ref moves


@dataclass(slots=True)
class Report:
    """What became of a push."""

    refs: dict[str, str | None]  # ref -> why not; None: done
    unpack: str | None = None  # why the pack was not accepted; then no ref is done
    message: str | None = None  # for the pusher's terminal, when the whole push was refused
    event: PushEvent | None = None
    storage: StorageFailed | None = None  # what failed, if it was not the push's fault

    def refuse(self, why: str) -> None:
        """Refuse every ref that is not refused for a reason of its own."""
        self.refs = {ref: problem or why for ref, problem in self.refs.items()}


class Pushes:
    def __init__(
        self,
        database: Database,
        packs: Packs,
        directory: Path,
        *,
        clock: Clock,
        limits: Limits,
        heavy: threading.Semaphore,
        processes: threading.Semaphore,
        git: Path | None = None,
    ) -> None:
        """`heavy` and `processes` bound the work that is done at once, in threads and beside;
        `git` is the binary, for packs of many objects."""
        self._git = git
        self._database = database
        self._packs = packs
        self._directory = directory
        self._clock = clock
        self._limits = limits
        self._heavy = heavy
        self._processes = processes
        self.listener: PushListener | None = None
        self._marks = _Marks(database, clock)

    def quarantine(self) -> Quarantine:
        """A place for one pack to come."""
        return Quarantine(
            self._directory,
            self._packs.new_id(),
            self._limits,
            heavy=self._heavy,
            processes=self._processes,
            git=self._git,
        )

    def receive(self, request: Request, *, say: Say, progress: Say) -> Report:
        """Carry out a push, or say why not; what the listener says goes to `say`. `progress` also
        hears nothing, now and then, while there is nothing to say."""
        report = Report({change.ref: None for change in request.changes})
        try:
            with self.quarantine() as quarantine:
                self._receive(request, quarantine, report, progress)
        except (BadPack, OverLimit) as error:
            report.unpack = error.detail
            report.refuse("unpacker error")
        except (StorageFailed, OSError) as error:
            log.warning("a push could not be stored", exc_info=True)
            report.storage = error if isinstance(error, StorageFailed) else StorageFailed()
            report.unpack = report.storage.detail
            report.refuse("unpacker error")
        except PushRejected as error:
            report.message = error.detail
            report.refuse(error.detail.strip().partition("\n")[0] or "refused")
        if report.event is not None:
            self._tell(report.event, say)
        return report

    def _receive(
        self, request: Request, quarantine: Quarantine, report: Report, progress: Say
    ) -> None:
        repository_id = request.repository.id
        generation, room = self.standing(repository_id)
        objects = Objects(self._packs.of_repository(repository_id))
        arrived = None
        if request.chunks is not None:
            arrived = quarantine.admit(
                request.chunks,
                objects,
                tips=[bytes.fromhex(change.new) for change in request.changes if change.new],
                progress=progress,
                room=room,
            )
            if arrived is not None:
                objects.packs.append(arrived.pack)
        values = self._check(request, objects, report)
        accepted = tuple(c for c in request.changes if report.refs[c.ref] is None)
        if not accepted or (request.atomic and len(accepted) < len(request.changes)):
            report.refuse("atomic push failed")
            return
        self._ask_listener(request, accepted, objects)
        if arrived is not None:
            self._packs.upload(arrived.new)
        for _ in range(_TRIES):
            with self._database.writing() as connection:
                if lock(connection, repository_id) == generation:
                    report.event = self._move(connection, request, arrived, values, report)
                    break
            generation = self._look_again(request, arrived)
        else:
            raise PushRejected("the repository is being cleaned up; push again")
        if arrived is not None and report.event is not None:
            self._packs.adopt(arrived.pack)

    def _look_again(self, request: Request, arrived: Arrived | None) -> int:
        """Objects have gone since the check: are those that the push needs still here?"""
        generation, _ = self.standing(request.repository.id)
        objects = Objects(self._packs.of_repository(request.repository.id))
        if arrived is not None:
            objects.packs.append(arrived.pack)
        needed = {bytes.fromhex(change.new) for change in request.changes if change.new}
        if arrived is not None:
            needed |= arrived.what_it_needs(self._limits)
        if not all(objects.has(name) for name in needed):
            raise PushRejected("the push builds on objects that have just been removed; push again")
        return generation

    def standing(self, repository_id: str) -> tuple[int, int]:
        """The repository's generation, and what its quota leaves."""
        with self._database.reading() as connection:
            row = _STANDING.one(connection, {"id": repository_id})
        if row is None:
            raise RepoNotFound()
        generation, pack_bytes = row
        return generation, self._limits.repository_bytes - pack_bytes

    def _check(
        self, request: Request, objects: Objects, report: Report
    ) -> dict[str, tuple[str, str | None] | None]:
        """Check each change by itself; answers what each ref is to be: (sha, peeled) or None."""
        values: dict[str, tuple[str, str | None] | None] = {}
        seen: set[str] = set()
        protected = f"refs/heads/{request.repository.default_branch}"
        for change in request.changes:
            problem = ref_problem(change.ref, self._limits.ref_bytes)
            if change.ref in seen:
                problem = "named twice in one push"
            elif change.ref.startswith(HIDDEN):
                problem = "deny updating a hidden ref"
            elif change.new is None and change.old is None:
                problem = "the ref does not exist"
            elif change.new is None and change.ref == protected:
                problem = "deletion of the default branch is not allowed"
            seen.add(change.ref)
            if problem is None and change.new is not None:
                values[change.ref], problem = _target(change, objects)
            elif problem is None:
                values[change.ref] = None
            report.refs[change.ref] = problem
        return values

    def _ask_listener(
        self, request: Request, accepted: tuple[RefChange, ...], objects: Objects
    ) -> None:
        if self.listener is None:
            return
        push = Push(
            repository=request.repository,
            pusher=request.pusher,
            changes=accepted,
            options=tuple(request.options),
            files=Files(objects, self._limits),
        )
        self.listener.before(push)

    def _move(
        self,
        connection: Connection,
        request: Request,
        arrived: Arrived | None,
        values: Mapping[str, tuple[str, str | None] | None],
        report: Report,
    ) -> PushEvent | None:
        """In the transaction: compare, then swap. None if nothing could be moved."""
        repository_id = request.repository.id
        self._compare(connection, request, report)
        accepted = [c for c in request.changes if report.refs[c.ref] is None]
        if not accepted or (request.atomic and len(accepted) < len(request.changes)):
            report.refuse("atomic push failed")
            return None
        refs.write(connection, repository_id, {c.ref: values[c.ref] for c in accepted})
        if arrived is not None and any(change.new for change in accepted):
            self._packs.insert(connection, repository_id, arrived.new)
        event = self._event(request, accepted)
        _ADD_EVENT.run(connection, _row(event))
        if request.also is not None:
            request.also(connection)
        return event

    def _compare(self, connection: Connection, request: Request, report: Report) -> None:
        """Check every old value and every new name against what is there now."""
        changes = [c for c in request.changes if report.refs[c.ref] is None]
        now = refs.current(connection, request.repository.id, [c.ref for c in changes])
        created = [c.ref for c in changes if c.old is None]
        conflicts = refs.NameConflicts(
            connection,
            request.repository.id,
            created=created,
            deleted=sum(1 for c in changes if c.new is None),
        )
        room = self._limits.repository_refs
        if created:
            room -= refs.count(connection, request.repository.id)
        # Deletions first: a push may replace `a` by `a/b`.
        for change in sorted(changes, key=lambda c: c.new is not None):
            there = now.get(change.ref)
            if there != change.old:
                report.refs[change.ref] = _stale(change, there)
            elif change.new is None:
                conflicts.remove(change.ref)
                room += 1
            elif change.old is None:
                in_the_way = conflicts.of(change.ref)
                if in_the_way is not None:
                    report.refs[change.ref] = f"name conflict with {in_the_way}"
                elif room < 1:
                    report.refs[change.ref] = (
                        f"over the limit of {self._limits.repository_refs} refs (repository_refs)"
                    )
                else:
                    conflicts.add(change.ref)
                    room -= 1

    def _event(self, request: Request, accepted: Sequence[RefChange]) -> PushEvent:
        at_ms = self._clock()
        return PushEvent(
            id=new_id("push", at_ms),
            repository_id=request.repository.id,
            pusher=request.pusher,
            changes=tuple(accepted),
            options=tuple(request.options),
            at_ms=at_ms,
        )

    def _tell(self, event: PushEvent, say: Say) -> None:
        """Hand the event to the listener. Whatever goes wrong there, the push has happened."""
        if self.listener is None:
            return
        try:
            self.listener.after(event, say)
        except Exception as error:  # the listener is not ours; the outbox keeps the event
            log.exception("the listener failed on push event %s", event.id)
            what = f": {error.detail}" if isinstance(error, GitStoreError) else ""
            say(
                f"The push is stored, but what should follow it failed ({type(error).__name__}"
                f"{what}). It will be tried again."
            )
            return
        self._marks.add(event.id)

    # --- the outbox -------------------------------------------------------------------------------

    def pending(self, limit: int) -> list[PushEvent]:
        self._marks.flush()
        waiting = (
            select(push_events)
            .where(push_events.c.handled_ms.is_(None))
            .order_by(push_events.c.id)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [
                PushEvent(
                    id=row.id,
                    repository_id=row.repository_id,
                    pusher=Pusher(row.pusher_id, row.pusher_name),
                    changes=tuple(RefChange(*change) for change in row.changes),
                    options=tuple(row.options),
                    at_ms=row.at_ms,
                )
                for row in connection.execute(waiting)
            ]

    def mark_handled(self, event_id: str) -> None:
        self._marks.add(event_id)
        self._marks.flush()

    def close(self) -> None:
        self._marks.flush()


class _Marks:
    """Events that were handled and are not marked yet. If the process dies with them, they are
    told again: listeners expect that."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._events: set[str] = set()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def add(self, event_id: str) -> None:
        with self._lock:
            self._events.add(event_id)
            if self._timer is None:
                self._timer = threading.Timer(_MARK_SECONDS, self._flush_later)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        with self._lock:
            events, self._events = self._events, set()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if not events:
            return
        now_ms = self._clock()
        with self._database.writing() as connection:
            _MARK.many(connection, [{"event": one, "now_ms": now_ms} for one in sorted(events)])

    def _flush_later(self) -> None:
        try:
            self.flush()
        except (SQLAlchemyError, StorageFailed):
            log.exception("marking pushes as handled failed; they will be told again")


def _target(
    change: RefChange, objects: Objects
) -> tuple[tuple[str, str | None] | None, str | None]:
    """What a ref is to be, or what is wrong with it."""
    assert change.new is not None
    name = bytes.fromhex(change.new)
    if not objects.has(name):
        return None, f"missing necessary objects: {change.new} was not sent"
    target, kind, tags = objects.peel(name)
    if change.ref.startswith("refs/heads/") and (kind != COMMIT or tags):
        return None, "a branch can only point at a commit"
    return (change.new, target.hex() if tags else None), None


def _stale(change: RefChange, there: str | None) -> str:
    if there is None:
        return "the ref has been deleted meanwhile"
    if change.old is None:
        return "the ref exists already"
    return "fetch first: the ref has moved meanwhile"


def _row(event: PushEvent) -> dict[str, object]:
    return {
        "id": event.id,
        "repository_id": event.repository_id,
        "pusher_id": event.pusher.id,
        "pusher_name": event.pusher.name,
        "changes": json.dumps([[c.ref, c.old, c.new] for c in event.changes]),
        "options": json.dumps(event.options),
        "at_ms": event.at_ms,
        "handled_ms": None,
    }
