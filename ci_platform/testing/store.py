"""The store in memory: what every contract test also runs against, and fast tests use.

One lock, plain dicts, and the same pure moves as the SQL store. Values go through JSON on their
way in, as they would in a database, so that what cannot be stored is refused here too. Nothing is
durable, and nothing is shared between processes. `ci_platform.testing` offers it to tests.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ci_platform.errors import Conflict, RunExists, RunNotFound, StepNotFound
from ci_platform.family import Link
from ci_platform.labels import RECALL, serves
from ci_platform.model import (
    Approval,
    AuditNote,
    Decision,
    Entry,
    Json,
    NewRun,
    Operation,
    OperationState,
    RepositoryId,
    Run,
    RunId,
    RunState,
    StepKey,
    WorkerId,
)
from ci_platform.ports import Append, Appended, Claim, Clock, RunFilter, RunPage
from ci_platform.ports.housekeeping import OldRun, OldRuns
from ci_platform.scheduling import RunLimits, Share, Standing, Superseded
from ci_platform.shell import MemoLimits
from ci_platform.store import births, journal, listing, moves, retention
from ci_platform.store.bell import Bells, Listener
from ci_platform.store.claims import check_claim
from ci_platform.store.codec import moving_columns
from ci_platform.store.packing import pack, unpack
from ci_platform.store.runs import LIVE_STATES, check_created
from ci_platform.testing.operations import InMemoryOperations, in_order
from ci_platform.testing.records import (
    InMemoryAudit,
    InMemoryDescriptions,
    InMemoryDuties,
    InMemoryHooks,
    InMemoryIdentity,
    InMemoryMemos,
    InMemoryNetworks,
    InMemoryShelves,
    InMemoryWorkers,
)
from ci_platform.testing.slots import InMemorySchedules, Slots
from ci_platform.testing.tables import Effects, InMemoryLogs, Tables

Value = TypeVar("Value")


class _NoWire:
    """There are no other processes."""

    def __init__(self, name: str) -> None:
        self._closed = threading.Event()

    def listen(self) -> None:
        return None

    def send(self) -> None:
        return None

    def receive(self, timeout_s: float) -> bool:
        self._closed.wait(timeout_s)
        return False

    def stop(self) -> None:
        self._closed.set()

    def close(self) -> None:
        self._closed.set()


class InMemoryStore:
    """`ports.Store`."""

    def __init__(
        self,
        clock: Clock,
        limits: RunLimits | None = None,
        memo_limits: MemoLimits | None = None,
    ) -> None:
        self._bells = Bells(_NoWire)
        tables = Tables(clock, self._bells.ring)
        self._audit = InMemoryAudit()
        self._runs = _Runs(tables, Slots(tables, limits or RunLimits()), self._audit)
        self._operations = InMemoryOperations(tables)
        self._approvals = _Approvals(tables)
        self._logs = InMemoryLogs(tables)
        self._family = _Family(tables)
        self._memos = InMemoryMemos(tables, memo_limits or MemoLimits())
        self._identity = InMemoryIdentity(clock)
        self._hooks = InMemoryHooks()
        self._descriptions = InMemoryDescriptions()
        self._workers = InMemoryWorkers(tables.held)
        self._duties = InMemoryDuties(clock)
        self._schedules = InMemorySchedules()
        self._shelves = InMemoryShelves()
        self._networks = InMemoryNetworks()

    @property
    def runs(self) -> _Runs:
        return self._runs

    @property
    def operations(self) -> InMemoryOperations:
        return self._operations

    @property
    def approvals(self) -> _Approvals:
        return self._approvals

    @property
    def family(self) -> _Family:
        return self._family

    @property
    def logs(self) -> InMemoryLogs:
        return self._logs

    @property
    def memos(self) -> InMemoryMemos:
        return self._memos

    @property
    def identity(self) -> InMemoryIdentity:
        return self._identity

    @property
    def hooks(self) -> InMemoryHooks:
        return self._hooks

    @property
    def descriptions(self) -> InMemoryDescriptions:
        return self._descriptions

    @property
    def audit(self) -> InMemoryAudit:
        return self._audit

    @property
    def workers(self) -> InMemoryWorkers:
        return self._workers

    @property
    def schedules(self) -> InMemorySchedules:
        return self._schedules

    @property
    def duties(self) -> InMemoryDuties:
        return self._duties

    @property
    def shelves(self) -> InMemoryShelves:
        return self._shelves

    @property
    def networks(self) -> InMemoryNetworks:
        return self._networks

    def bell(self, *, work: bool = False) -> Listener:
        return self._bells.listener(work=work)

    def close(self) -> None:
        self._bells.close()


def _copied(value: Json, name: str) -> Json:
    """As it would come back from a database."""
    return unpack(pack(value, name))


class _Runs:
    def __init__(self, tables: Tables, slots: Slots, audit: InMemoryAudit) -> None:
        self._tables = tables
        self._slots = slots
        self._audit = audit
        self._served = ""

    def create(
        self,
        new: Sequence[NewRun],
        *,
        skip_existing: bool = False,
        notes: Sequence[AuditNote] = (),
    ) -> list[Run]:
        tables = self._tables
        check_created(new)
        births.prepare(new, skip_existing=skip_existing, notes=notes)
        with tables.lock:
            chosen: dict[RunId, NewRun] = {}
            for one in new:
                if one.id in tables.runs or one.id in chosen:
                    if not skip_existing:
                        raise RunExists(f"a run with the id {one.id} exists")
                    continue
                chosen[one.id] = one
            created = [self._create(one) for one in chosen.values()]
            self._slots.created(created)
            created = [tables.runs[run.id] for run in created]
            for one, note in zip(new, notes, strict=bool(notes)):
                if chosen.get(one.id) is one:
                    self._note(note)
        tables.ring()
        return created

    def _note(self, note: AuditNote | None) -> None:
        if note is not None:
            self._audit.write(note)

    def _create(self, new: NewRun) -> Run:
        tables = self._tables
        tables.counters[new.repository_id] += 1
        number = tables.counters[new.repository_id]
        run, entries = moves.born(new, number, tables.clock.now_ms())
        run = replace(
            run, payload=_copied(run.payload, "payload"), event=_copied(run.event, "event")
        )
        if new.kin is not None and new.kin.parent_id in tables.runs:
            tables.links[run.id] = Link(run.id, new.kin, 1)
        tables.runs[run.id] = run
        tables.journals[run.id] = [_stored(entry) for entry in entries]
        for gate in () if new.shared is None else new.shared.gates:
            tables.approvals[run.id, gate.key] = replace(gate, run_id=run.id)
        return run

    def get(self, run_id: RunId) -> Run:
        with self._tables.lock:
            return self._tables.run(run_id)

    def by_number(self, repository_id: RepositoryId, number: int) -> Run:
        with self._tables.lock:
            for run in self._tables.runs.values():
                if run.repository_id == repository_id and run.number == number:
                    return run
        raise RunNotFound(f"{repository_id} has no run #{number}")

    def counts(self) -> Mapping[RunState, int]:
        with self._tables.lock:
            found = Counter(run.state for run in self._tables.runs.values())
        return {state: found[state] for state in LIVE_STATES}

    def journal(
        self, run_id: RunId, *, after: int = 0, limit: int | None = None
    ) -> Sequence[Entry]:
        with self._tables.lock:
            self._tables.run(run_id)
            entries = self._tables.journals[run_id][max(after, 0) :]
        return entries if limit is None else entries[:limit]

    def claim(
        self, worker: WorkerId, *, limit: int, lease_ms: int, share: Share | None = None
    ) -> Sequence[Claim]:
        check_claim(worker, limit)
        tables = self._tables
        now_ms = tables.clock.now_ms()
        with tables.lock:
            due = in_order(
                [
                    (run.id, run.repository_id, run.ready_ms, run.place.priority)
                    for run in tables.runs.values()
                ],
                now_ms=now_ms,
                served=self._served,
            )
            claims = []
            ids = [run_id for run_id, _ in due] if share is None else share.first(due)
            for run_id in self._slots.choose(ids, limit):
                run, entry = moves.claimed(
                    tables.runs[run_id],
                    worker,
                    lease_ms=lease_ms,
                    now_ms=now_ms,
                    slot=bool(self._slots.limits),
                )
                self._write(run, [entry])
                self._served = run.repository_id
                claims.append(Claim(run, list(tables.journals[run_id])))
        if claims:
            tables.ring()
        return claims

    def append(self, append: Append) -> Appended:
        prepared = journal.prepare(append)
        tables = self._tables
        with tables.lock:
            run = tables.run(append.run_id)
            now_ms = tables.clock.now_ms()
            changes = Effects(tables, run, now_ms)
            for effect in append.effects:
                changes.check_lease(effect)
            if not moves.admits(run, append):
                return Appended(False, tables.journals[run.id][append.expected_seq :], run)
            for effect in append.effects:
                changes.check(effect)
            after = moves.moved(run, append, now_ms)
            moving_columns(after)  # refuses what a database could not hold
            entries = moves.numbered(append.drafts, run.last_seq, now_ms)
            for effect, encoded in zip(append.effects, prepared.effects, strict=True):
                changes.apply(effect, encoded)
            if after.state.terminal:
                changes.end()
            self._write(after, entries)
            self._slots.moved(run, after)
            self._note(append.note)
        tables.ring()
        return Appended(True, entries, after)

    def _write(self, run: Run, entries: Sequence[Entry]) -> None:
        self._tables.runs[run.id] = run
        self._tables.journals[run.id] += [_stored(entry) for entry in entries]

    def renew(
        self, worker: WorkerId, *, lease_ms: int, held: Collection[str] | None = None
    ) -> None:
        tables = self._tables
        with tables.lock:
            until_ms = tables.clock.now_ms() + lease_ms
            for run in tables.runs.values():
                if run.worker == worker and (held is None or run.id in held):
                    tables.runs[run.id] = replace(run, lease_until_ms=until_ms)
            for one in tables.operations.values():
                if one.worker == worker and (held is None or one.id in held):
                    tables.operations[one.id] = replace(one, lease_until_ms=until_ms)

    def expire(self, *, limit: int = 100) -> int:
        now_ms = self._tables.clock.now_ms()

        def ran_out(leased: Run | Operation) -> bool:
            return leased.lease_until_ms is not None and leased.lease_until_ms <= now_ms

        with self._tables.lock:
            refilled = self._slots.refill()
        if refilled:
            self._tables.ring()
        return self._take_back(ran_out, limit)

    def release(self, worker: WorkerId | None) -> int:
        def of_worker(leased: Run | Operation) -> bool:
            return leased.worker is not None and worker in (None, leased.worker)

        return self._take_back(of_worker, None)

    def _take_back(self, lost: Callable[[Run | Operation], bool], limit: int | None) -> int:
        tables = self._tables
        with tables.lock:
            now_ms = tables.clock.now_ms()
            runs = [run for run in tables.runs.values() if lost(run)][:limit]
            for run in runs:
                after, entry = moves.expired(run, now_ms)
                self._write(after, [entry])
            operations = [one for one in tables.operations.values() if lost(one)][:limit]
            for one in operations:
                over = tables.runs[one.run_id].state.terminal
                tables.operations[one.id] = replace(
                    one,
                    state=OperationState.DONE if over else OperationState.QUEUED,
                    lost_worker=one.worker,
                    worker=None,
                    lease_until_ms=None,
                    ready_ms=one.ready_ms if over else now_ms,
                )
        count = len(runs) + len(operations)
        if count:
            tables.ring()
        return count

    def due_since_ms(self) -> int | None:
        with self._tables.lock:
            now_ms = self._tables.clock.now_ms()
            due = [run.ready_ms for run in self._tables.runs.values() if moves.due(run, now_ms)]
        return min((at_ms for at_ms in due if at_ms is not None), default=None)

    def next_ready_ms(self, labels: Collection[str] | None = None) -> int | None:
        with self._tables.lock:
            due = [run.ready_ms for run in self._tables.runs.values()]
            due += [
                one.ready_ms
                for one in self._tables.operations.values()
                if one.state is OperationState.QUEUED
                and (labels is None or one.pool == RECALL or serves(labels, one.pool))
            ]
        return min((at_ms for at_ms in due if at_ms is not None), default=None)

    def delete(self, run_id: RunId, *, note: AuditNote | None = None) -> None:
        tables = self._tables
        with tables.lock:
            run = tables.run(run_id)
            if not run.state.terminal:
                raise Conflict(f"{run_id} is {run.state}: only a run that has ended can be deleted")
            del tables.runs[run_id], tables.journals[run_id]
            tables.logs.pop(run_id, None)
            tables.links = {
                child: link
                for child, link in tables.links.items()
                if run_id not in (child, link.kin.parent_id)
            }
            for operation_id in [i for i, o in tables.operations.items() if o.run_id == run_id]:
                del tables.operations[operation_id]
            for gate in [gate for gate in tables.approvals if gate[0] == run_id]:
                del tables.approvals[gate]
            self._note(note)
        tables.ring()

    def old(self, *, before_ms: int, keep: int, after: int = 0, limit: int = 500) -> OldRuns:
        with self._tables.lock:
            every = [run for run in self._tables.runs.values() if run.created_ms < before_ms]
            page = every[after : after + limit]
            found = [run for run in page if self._old(run, before_ms, keep)]
            commits = {
                run.id: {run.commit, str(self._tables.journals[run.id][0].data["commit"])}
                for run in found
            }
        runs = [OldRun(run.id, run.repository_id, sorted(commits[run.id])) for run in found]
        return OldRuns(runs, after + limit if len(page) == limit else 0)

    def _old(self, run: Run, before_ms: int, keep: int) -> bool:
        newer = (
            one
            for one in self._tables.runs.values()
            if (one.repository_id, one.pipeline) == (run.repository_id, run.pipeline)
            and one.ended_ms is not None
            and one.number > run.number
        )
        ended = run.ended_ms is not None and run.ended_ms < before_ms
        return ended and sum(1 for _ in newer) >= keep

    def standing(self, run_id: str) -> Standing | None:
        with self._tables.lock:
            return self._slots.standing(self._tables.run(RunId(run_id)))

    def superseded(self, *, limit: int = 100) -> Sequence[Superseded]:
        with self._tables.lock:
            return self._slots.superseded(limit)

    def superseded_done(self, by: str) -> None:
        with self._tables.lock:
            self._slots.superseded_done(by)

    def commits_used(self, repository_id: RepositoryId, commits: Sequence[str]) -> set[str]:
        with self._tables.lock:
            runs = list(self._tables.runs.values())
        return {run.commit for run in runs if run.repository_id == repository_id} & set(commits)

    def layers_used(self, digests: Sequence[str]) -> set[str]:
        with self._tables.lock:
            journals = [list(entries) for entries in self._tables.journals.values()]
            memos = list(self._tables.memos.values())
            alone = {one.memo.digest for one in memos if one.memo.run_id in self._tables.runs}
        found = (retention.layers_of(entry) for entries in journals for entry in entries)
        return set[str]().union(*found, (one for one in alone if one)) & set(digests)

    def list(self, which: RunFilter, *, cursor: str | None = None, limit: int = 50) -> RunPage:
        listing.check_limit(limit)
        before = listing.position(cursor)
        with self._tables.lock:
            numbered = list(enumerate(self._tables.runs.values(), 1))
        found = [
            (n, run)
            for n, run in reversed(numbered)
            if (before is None or n < before) and _matches(run, which)
        ]
        last = str(found[limit - 1][0]) if len(found) > limit else None
        return RunPage([run for _, run in found[:limit]], last)


def _stored(entry: Entry) -> Entry:
    return replace(entry, data=_copied(dict(entry.data), f"the data of {entry.kind}"))


def _matches(run: Run, which: RunFilter) -> bool:
    return (
        (which.repository_ids is None or run.repository_id in which.repository_ids)
        and (which.pipeline is None or run.pipeline == which.pipeline)
        and (not which.states or run.state in which.states)
        and (which.branch is None or run.ref == f"refs/heads/{which.branch}")
        and (which.commit is None or run.commit == which.commit)
        and (which.trigger is None or run.trigger == which.trigger)
        and (which.actor is None or run.actor == which.actor)
        and (which.created_after_ms is None or run.created_ms >= which.created_after_ms)
        and (which.created_before_ms is None or run.created_ms < which.created_before_ms)
    )


class _Approvals:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def get(self, run_id: RunId, key: StepKey) -> Approval:
        with self._tables.lock:
            found = self._tables.approvals.get((run_id, key))
        if found is None:
            raise StepNotFound(f"{run_id} has no approval {key.label!r}")
        return found

    def of_run(self, run_id: RunId) -> list[Approval]:
        return [gate for gate in self._all() if gate.run_id == run_id]

    def open(self, repository_ids: Sequence[RepositoryId] | None = None) -> list[Approval]:
        return [
            gate
            for gate in self._all()
            if gate.outcome is None
            and (repository_ids is None or gate.repository_id in repository_ids)
        ][:200]

    def decision(self, run_id: RunId, key: StepKey, user_id: str) -> Decision | None:
        with self._tables.lock:
            gate = self._tables.approvals.get((run_id, key))
        decisions = () if gate is None else gate.decisions
        return next((one for one in decisions if one.user_id == user_id), None)

    def _all(self) -> list[Approval]:
        with self._tables.lock:
            gates = list(self._tables.approvals.values())
        return sorted(gates, key=lambda gate: gate.opened_ms)


class _Family:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def parent(self, run_id: str) -> Link | None:
        with self._tables.lock:
            return self._tables.links.get(run_id)

    def children(self, run_id: str) -> Sequence[Link]:
        with self._tables.lock:
            return [one for one in self._tables.links.values() if one.kin.parent_id == run_id]

    def due(self, *, limit: int = 100) -> Sequence[Link]:
        with self._tables.lock:
            return [one for one in self._tables.links.values() if one.is_due][:limit]

    def settled(self, link: Link) -> None:
        with self._tables.lock:
            if self._tables.links.get(link.child_id) == link:
                self._tables.links[link.child_id] = replace(link, due=-link.due)
