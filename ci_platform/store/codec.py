"""Values of model.py to columns and back. Pure; used by every module of the store.

Structured values are packed JSON (packing.py) and may hold any text. Plain text columns refuse NUL
characters and lone surrogates, which PostgreSQL cannot hold.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Protocol, TypedDict

from ci_platform.errors import InvalidRequest
from ci_platform.model import (
    Entry,
    EntryKind,
    ErrorInfo,
    Json,
    RepositoryId,
    Resume,
    Run,
    RunId,
    RunState,
    StepKey,
    StepKind,
    Wait,
    WorkerId,
)
from ci_platform.scheduling import Hold, OnNew, Place
from ci_platform.store.packing import pack, unpack

_KINDS = {str(kind): kind for kind in EntryKind}
_STATES = {str(state): state for state in RunState}
_HOLDS = {str(hold): hold for hold in Hold}
_ANYWHERE = Place()
_STEP_KINDS = {str(kind): kind for kind in StepKind}


class Columns(Protocol):
    """A row: its columns by name."""

    def __getattr__(self, name: str) -> Json: ...


def pack_or_none(value: Json, field: str) -> bytes | None:
    """None (and so SQL's NULL) for None."""
    return None if value is None else pack(value, field)


def plain(value: str, field: str) -> str:
    """Check a text that goes into a column as it is. Raises InvalidRequest."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field} is not valid Unicode text", field=field) from error
    if "\0" in value:
        raise InvalidRequest(f"{field} contains a NUL character", field=field)
    return value


def plain_or_none(value: str | None, field: str) -> str | None:
    return None if value is None else plain(value, field)


# --- keys, errors, waits --------------------------------------------------------------------------


class KeyColumns(TypedDict):
    step_kind: str
    step_name: str
    occurrence: int


def key_columns(key: StepKey) -> KeyColumns:
    return {
        "step_kind": key.kind.value,
        "step_name": plain(key.name, "step name"),
        "occurrence": key.occurrence,
    }


def key_of(row: Columns) -> StepKey:
    return StepKey(_STEP_KINDS[row.step_kind], row.step_name, row.occurrence)


def pack_error(error: ErrorInfo | None) -> bytes | None:
    return None if error is None else pack(asdict(error), "error")


def error_of(data: bytes | None) -> ErrorInfo | None:
    return None if data is None else ErrorInfo(**unpack(data))


def pack_waits(waits: Sequence[Wait]) -> bytes | None:
    """Arrays, not objects: this text is most of what a sleeping run's row costs."""
    if not waits:
        return None
    return pack([[w.kind, w.name, w.type, w.since_ms, w.until_ms] for w in waits], "waits")


def waits_of(data: bytes | None) -> tuple[Wait, ...]:
    return () if data is None else tuple(Wait(*wait) for wait in unpack(data))


# --- runs -----------------------------------------------------------------------------------------


def run_of(row: Columns, payload: Mapping[str, Json], event: Mapping[str, Json]) -> Run:
    return Run(
        id=RunId(row.id),
        number=row.number,
        repository_id=RepositoryId(row.repository_id),
        pipeline=row.pipeline,
        ref=row.ref,
        commit=row.commit,
        resume=Resume(row.resume),
        trigger=row.trigger,
        payload=payload,
        event=event,
        actor=row.actor,
        actor_id=row.actor_id,
        trusted=row.trusted,
        created_ms=row.created_ms,
        state=_STATES[row.state],
        reason=row.reason,
        last_seq=row.last_seq,
        fence=row.fence,
        worker=None if row.worker is None else WorkerId(row.worker),
        lease_until_ms=row.lease_until_ms,
        ready_ms=row.ready_ms,
        waits=waits_of(row.waits),
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        output=None if row.output is None else unpack(row.output),
        error=error_of(row.error),
        pause_requested=row.pause_requested,
        cancel_requested=row.cancel_requested,
        timeout_ms=row.timeout_ms,
        place=_place_of(row),
        hold=None if row.hold is None else _HOLDS[row.hold],
        slot=row.slot is not None,
    )


def _place_of(row: Columns) -> Place:
    if row.group_key is None and row.priority == 0:
        return _ANYWHERE
    return Place(row.group_key, row.group_limit, OnNew(row.on_new), row.priority)


def fixed_columns(run: Run) -> dict[str, object]:
    """The columns of a run that never change."""
    return {
        "id": plain(run.id, "id"),
        "number": run.number,
        "repository_id": plain(run.repository_id, "repository_id"),
        "pipeline": plain(run.pipeline, "pipeline"),
        "ref": plain(run.ref, "ref"),
        "resume": run.resume.value,
        "trigger": plain(run.trigger, "trigger"),
        "actor": plain(run.actor, "actor"),
        "actor_id": plain_or_none(run.actor_id, "actor_id"),
        "trusted": run.trusted,
        "created_ms": run.created_ms,
        "timeout_ms": run.timeout_ms,
        "group_key": plain_or_none(run.place.group, "concurrency.group"),
        "group_limit": run.place.limit,
        "on_new": run.place.on_new.value,
        "priority": run.place.priority,
    }


def commit_columns(run: Run) -> dict[str, object]:
    """What changes only when the run goes on from another commit."""
    return {
        "commit": plain(run.commit, "commit"),
        "commit_key": commit_key(run.repository_id, run.commit),
    }


def commit_key(repository_id: str, commit: str) -> int:
    """A short stand-in for both in an index: the whole ones, for each run, were a tenth of what a
    waiting run costs. Who looks by it compares these too. 31 bits, as integers of databases are
    signed. Rows hold it: it never changes."""
    return zlib.crc32(f"{repository_id} {commit}".encode()) >> 1


def moving_columns(run: Run) -> dict[str, object]:
    """The columns of a run that its journal and its lease move."""
    return {
        "state": run.state.value,
        "reason": plain_or_none(run.reason, "reason"),
        "last_seq": run.last_seq,
        "fence": run.fence,
        "worker": plain_or_none(run.worker, "worker"),
        "lease_until_ms": run.lease_until_ms,
        "ready_ms": run.ready_ms,
        "waits": pack_waits(run.waits),
        "started_ms": run.started_ms,
        "ended_ms": run.ended_ms,
        "output": pack_or_none(run.output, "output"),
        "error": pack_error(run.error),
        "pause_requested": run.pause_requested,
        "cancel_requested": run.cancel_requested,
        "hold": None if run.hold is None else run.hold.value,
        "slot": 1 if run.slot else None,
    }


# --- entries --------------------------------------------------------------------------------------


def entry_columns(run_n: int, entry: Entry, data: bytes | None) -> dict[str, object]:
    """The row of an entry; `data` is packed before the transaction."""
    key = entry.key
    return {
        "run_n": run_n,
        "seq": entry.seq,
        "kind": entry.kind.value,
        "at_ms": entry.at_ms,
        "data": data,
        "step_kind": None if key is None else key.kind.value,
        "step_name": None if key is None else key.name,
        "occurrence": None if key is None else key.occurrence,
        "attempt": entry.attempt,
    }


def pack_data(data: Mapping[str, Json], kind: EntryKind) -> bytes | None:
    return pack(data, f"the data of {kind}") if data else None


def entry_of(row: Columns) -> Entry:
    return Entry(
        seq=row.seq,
        kind=_KINDS[row.kind],
        at_ms=row.at_ms,
        data={} if row.data is None else unpack(row.data),
        key=None if row.step_kind is None else key_of(row),
        attempt=row.attempt,
    )
