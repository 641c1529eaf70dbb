"""Creating runs: a batch of requests inside one transaction, each all or none.

Numbers count per repository without holes, since the counter's row is locked and moves in the
same transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Insert, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.errors import RunExists, SluiceError
from ci_platform.model import AuditNote, Entry, NewRun, RepositoryId, Run
from ci_platform.ports import Clock
from ci_platform.store import audit, effects, family, moves, slots
from ci_platform.store.codec import (
    commit_columns,
    entry_columns,
    fixed_columns,
    moving_columns,
    pack_data,
    plain,
)
from ci_platform.store.inputs import pack_payload
from ci_platform.store.journal import write_entries
from ci_platform.store.packing import pack
from ci_platform.store.tables import RUN_COUNTERS, RUN_INPUTS, RUNS, SUPERSESSIONS

_EXISTING = select(RUNS.c.id).where(RUNS.c.id.in_(bindparam("ids", expanding=True)))
_INSERT_RUNS = RUNS.insert().returning(RUNS.c.n, RUNS.c.id)
_INSERT_INPUTS = RUN_INPUTS.insert()


def _count(insert: Callable[[Table], sqlite.Insert | postgresql.Insert]) -> Insert:
    """Move counters, made where there is none, and tell where they are then."""
    new = insert(RUN_COUNTERS)
    return new.on_conflict_do_update(
        index_elements=["repository_id"],
        set_={"last_number": RUN_COUNTERS.c.last_number + new.excluded.last_number},
    ).returning(RUN_COUNTERS.c.repository_id, RUN_COUNTERS.c.last_number)


_COUNT = {"sqlite": _count(sqlite.insert), "postgresql": _count(postgresql.insert)}
_IDS_PER_QUERY = 500  # names in one IN (...)


@dataclass(frozen=True, slots=True)
class Creation:
    """One caller's runs; `payloads` and `events` are packed."""

    new: Sequence[NewRun]
    skip_existing: bool
    payloads: Sequence[bytes]
    events: Sequence[bytes]
    notes: Sequence[Mapping[str, object]]  # for the audit log; one for each, or none

    @property
    def size(self) -> int:
        return sum(map(len, self.payloads)) + sum(map(len, self.events))


def prepare(
    new: Sequence[NewRun], *, skip_existing: bool, notes: Sequence[AuditNote] = ()
) -> Creation:
    """Encode and check. Raises InvalidRequest naming the field."""
    for one in new:
        for field in ("id", "repository_id", "pipeline", "ref", "commit", "trigger", "actor"):
            plain(getattr(one, field), field)
    return Creation(
        new=new,
        skip_existing=skip_existing,
        payloads=[pack_payload(one) for one in new],
        events=[pack(one.event, "event") for one in new],
        notes=[audit.columns(note) for note in notes],
    )


class Creator:
    """Handles batches for the group commit."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(
        self, connection: Connection, batch: Sequence[Creation]
    ) -> list[list[Run] | SluiceError]:
        now_ms = self._clock.now_ms()
        taken = _existing(connection, [one.id for creation in batch for one in creation.new])
        chosen = [_choose(creation, taken) for creation in batch]
        wanted = Counter(
            creation.new[index].repository_id
            for creation, indexes in zip(batch, chosen, strict=True)
            if not isinstance(indexes, SluiceError)
            for index in indexes
        )
        slots.lock(connection, _groups(batch))
        numbers = _take_numbers(connection, wanted)
        births = _Births(now_ms, numbers)
        answers: list[list[Run] | SluiceError] = []
        for creation, indexes in zip(batch, chosen, strict=True):
            if isinstance(indexes, SluiceError):
                answers.append(indexes)
            else:
                answers.append([births.add(creation, index) for index in indexes])
        admitted = births.write(connection)
        audit.write(
            connection,
            [
                row
                for creation, indexes in zip(batch, chosen, strict=True)
                if creation.notes and not isinstance(indexes, SluiceError)
                for row in audit.together([creation.notes[index] for index in indexes])
            ],
        )
        if not admitted:
            return answers
        return [
            answer
            if isinstance(answer, SluiceError)
            else [moves.admitted(run, now_ms) if run.id in admitted else run for run in answer]
            for answer in answers
        ]


def _groups(batch: Sequence[Creation]) -> set[tuple[str, str]]:
    return {
        (one.repository_id, one.place.group)
        for creation in batch
        for one in creation.new
        if one.place.group is not None
    }


def _existing(connection: Connection, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(ids), _IDS_PER_QUERY):
        part = {"ids": ids[start : start + _IDS_PER_QUERY]}
        found.update(connection.execute(_EXISTING, part).scalars())
    return found


def _choose(creation: Creation, taken: set[str]) -> list[int] | SluiceError:
    """Which of the runs to create; notes their ids as taken."""
    chosen: list[int] = []
    ids: set[str] = set()
    for index, one in enumerate(creation.new):
        if one.id in taken or one.id in ids:
            if not creation.skip_existing:
                return RunExists(f"a run with the id {one.id} exists")
            continue
        ids.add(one.id)
        chosen.append(index)
    taken |= ids
    return chosen


def _take_numbers(connection: Connection, wanted: Counter[RepositoryId]) -> dict[RepositoryId, int]:
    """Reserve numbers: the last one given before, by repository."""
    if not wanted:
        return {}
    # In order of the ids, as everywhere: two batches must not lock each other's counters.
    rows = connection.execute(
        _COUNT[connection.dialect.name],
        [{"repository_id": one, "last_number": wanted[one]} for one in sorted(wanted)],
    )
    return {
        RepositoryId(row.repository_id): row.last_number - wanted[row.repository_id] for row in rows
    }


class _Births:
    """Collects new runs and writes them in three statements."""

    def __init__(self, now_ms: int, numbers: dict[RepositoryId, int]) -> None:
        self._now_ms = now_ms
        self._numbers = numbers
        self._new: list[NewRun] = []
        self._born: list[tuple[Run, list[Entry], bytes, bytes]] = []

    def add(self, creation: Creation, index: int) -> Run:
        new = creation.new[index]
        number = self._numbers[new.repository_id] = self._numbers[new.repository_id] + 1
        run, entries = moves.born(new, number, self._now_ms)
        self._new.append(new)
        self._born.append((run, entries, creation.payloads[index], creation.events[index]))
        return run

    def write(self, connection: Connection) -> set[str]:
        """Returns the ids of runs that their groups have admitted at once."""
        if not self._born:
            return set()
        rows = [
            {**fixed_columns(run), **commit_columns(run), **moving_columns(run)}
            for run, *_ in self._born
        ]
        numbered = {row.id: row.n for row in connection.execute(_INSERT_RUNS, rows)}
        connection.execute(
            _INSERT_INPUTS,
            [
                {"run_n": numbered[run.id], "payload": payload, "event": event}
                for run, _, payload, event in self._born
            ],
        )
        write_entries(
            connection,
            [
                entry_columns(numbered[run.id], entry, pack_data(entry.data, entry.kind))
                for run, entries, _, _ in self._born
                for entry in entries
            ],
        )
        family.add(connection, self._new, numbered)
        for new in self._new:
            if new.shared is not None and new.shared.gates:
                effects.copy_gates(connection, new.shared.gates, numbered[new.id])
        return self._queue(connection, numbered)

    def _queue(self, connection: Connection, numbered: dict[str, int]) -> set[str]:
        """Let groups admit whom they can, and note who is to end others."""
        runs = [run for run, *_ in self._born]
        groups = {group for run in runs if (group := slots.concerns(run)) is not None}
        if not groups:
            return set()
        superseding = [{"run_n": numbered[run.id]} for run in runs if slots.superseding(run)]
        if superseding:
            connection.execute(SUPERSESSIONS.insert(), superseding)
        admitted = set(slots.admit(connection, groups, self._now_ms))
        return {run_id for run_id, n in numbered.items() if n in admitted}
