"""Groups and limits of the in-memory store: what store/slots.py says in SQL, on plain values.

Part of `testing_store.InMemoryStore`; called under its lock.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ci_platform.model import RepositoryId, Run, RunId, RunState
from ci_platform.scheduling import (
    AHEAD_MAX,
    HOLDERS_MAX,
    Hold,
    OnNew,
    RunLimits,
    Schedule,
    Standing,
    Superseded,
)
from ci_platform.store import moves, slots
from ci_platform.testing.tables import Tables


class Slots:
    def __init__(self, tables: Tables, limits: RunLimits) -> None:
        self._tables = tables
        self.limits = limits
        self._superseding: list[RunId] = []

    def created(self, runs: Iterable[Run]) -> None:
        for run in runs:
            if slots.superseding(run):
                self._superseding.append(run.id)
            self.admit(run)

    def moved(self, before: Run, after: Run) -> None:
        self.admit(after)
        if before.slot and not after.slot:
            self._release(after.repository_id, 1)

    def admit(self, run: Run) -> None:
        """Give the free slots of the run's group to those who are next."""
        group = slots.concerns(run)
        if group is None:
            return
        members = self._members(run)
        taken = sum(one.hold is not Hold.GROUP for one in members)
        for head in _by_priority(one for one in members if one.hold is Hold.GROUP):
            if head.state is not RunState.QUEUED:
                continue
            if taken >= head.place.limit:
                break
            self._offer(head)
            taken += 1

    def choose(self, due: Sequence[RunId], limit: int) -> list[RunId]:
        """Which of the due runs may be claimed; those at their repository's limit are held."""
        if not self.limits:
            return list(due[:limit])
        runs = self._tables.runs
        used = self._used()
        chosen: list[RunId] = []
        for run_id in sorted(due, key=lambda one: not runs[one].slot):
            run = runs[run_id]
            if run.slot:
                chosen.append(run_id)
            elif 0 < self.limits.repository <= used[run.repository_id]:
                runs[run_id] = moves.over_limit(run)
            elif not 0 < self.limits.every <= used.total() and len(chosen) < limit:
                chosen.append(run_id)
                used[run.repository_id] += 1
        return chosen[:limit]

    def refill(self) -> bool:
        """See slots.refill."""
        held = {run.repository_id for run in self._tables.runs.values() if run.hold is Hold.LIMIT}
        used = self._used()
        for repository_id in held:
            room = slots.RELEASED_MAX
            if self.limits.repository > 0:
                room = self.limits.repository - used[repository_id]
            self._release(repository_id, max(0, room))
        return bool(held)

    def standing(self, run: Run) -> Standing | None:
        if run.state is not RunState.QUEUED:
            return None
        if run.hold is Hold.GROUP:
            beside = self._members(run)
            holders = [one.number for one in beside if one.hold is not Hold.GROUP]
        else:
            beside = [
                one for one in self._tables.runs.values() if one.repository_id == run.repository_id
            ]
            holders = [one.number for one in beside if one.slot and run.hold is not None]
        ahead = sum(one.hold is run.hold and _before(one, run) for one in beside)
        every = 0
        if run.hold is None and self.limits.every:
            every = sum(one.slot for one in self._tables.runs.values())
        full = every if every >= self.limits.every else 0
        return Standing(min(ahead, AHEAD_MAX), holders[:HOLDERS_MAX], full)

    def superseded(self, limit: int) -> list[Superseded]:
        found = []
        runs = self._tables.runs
        self._superseding = [run_id for run_id in self._superseding if run_id in runs]
        for run_id in self._superseding[:limit]:
            by = runs[run_id]
            earlier = [one for one in self._members(by) if one.number < by.number]
            if by.place.on_new is OnNew.CANCEL_QUEUED:
                earlier = [
                    one
                    for one in earlier
                    if one.state is RunState.QUEUED and one.started_ms is None
                ]
            found.append(Superseded(by.id, by.number, [one.id for one in earlier]))
        return found

    def superseded_done(self, by: str) -> None:
        self._superseding = [run_id for run_id in self._superseding if run_id != by]

    def _members(self, run: Run) -> list[Run]:
        group = run.repository_id, run.place.group
        return [
            one
            for one in self._tables.runs.values()
            if (one.repository_id, one.place.group) == group and not one.state.terminal
        ]

    def _release(self, repository_id: RepositoryId, count: int) -> None:
        held = [
            run
            for run in self._tables.runs.values()
            if run.repository_id == repository_id and run.hold is Hold.LIMIT
        ]
        for run in _by_priority(held)[:count]:
            self._offer(run)

    def _offer(self, run: Run) -> None:
        self._tables.runs[run.id] = moves.admitted(run, self._tables.clock.now_ms())

    def _used(self) -> Counter[RepositoryId]:
        return Counter(run.repository_id for run in self._tables.runs.values() if run.slot)


def _before(one: Run, run: Run) -> bool:
    """Whether one comes before a queued run, which the same keeps."""
    if one.place.priority != run.place.priority:
        more = one.place.priority > run.place.priority and one.state is RunState.QUEUED
        return more and (one.hold is not None or one.ready_ms is not None)
    if run.hold is not None:
        return one.state is RunState.QUEUED and one.number < run.number
    if one.ready_ms is None or run.ready_ms is None:
        return False
    return (one.ready_ms, one.number) < (run.ready_ms, run.number)


def _by_priority(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (-run.place.priority, run.number))


class InMemorySchedules:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._schedules: dict[tuple[str, ...], Schedule] = {}

    def replace(self, repository_id: str, schedules: Sequence[Schedule]) -> None:
        with self._lock:
            known = self._schedules
            ours = {(repository_id, *one.key): one for one in schedules}
            kept = {key: known.get(key, one) for key, one in ours.items()}
            others = {key: one for key, one in known.items() if key[0] != repository_id}
            self._schedules = others | kept

    def of_repository(self, repository_id: str) -> list[Schedule]:
        with self._lock:
            found = [one for key, one in self._schedules.items() if key[0] == repository_id]
        return sorted(found, key=lambda one: one.key)

    def due(self, now_ms: int, *, limit: int = 100) -> list[Schedule]:
        with self._lock:
            found = [one for one in self._schedules.values() if one.next_ms <= now_ms]
        return sorted(found, key=lambda one: one.next_ms)[:limit]

    def move(self, schedule: Schedule, next_ms: int) -> bool:
        key = (schedule.repository_id, *schedule.key)
        with self._lock:
            if self._schedules.get(key) != schedule:
                return False
            self._schedules[key] = replace(schedule, next_ms=next_ms)
        return True
