"""How a run's row moves: born, claimed, appended to, expired. Pure; the SQL and the in-memory
store both follow it, so that they cannot disagree.

`ready_ms` is kept only while a run may be claimed. A leased run needs none: its holder cannot let
go without seeing every entry, and then says itself when the run is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from ci_platform.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    LeaseLost,
    RunNotFound,
    TooLarge,
)
from ci_platform.model import Draft, Entry, EntryKind, Json, NewRun, Run, RunState, WorkerId
from ci_platform.ports import Append
from ci_platform.scheduling import Hold

DRAFTS_MAX = 60_000  # of one append: a run of 25,000 steps that ends with all of them open
EXECUTING = frozenset({RunState.QUEUED, RunState.RUNNING})  # of one that has begun
CLAIMABLE = frozenset({RunState.QUEUED, RunState.WAITING, RunState.RUNNING})


def numbered(drafts: Sequence[Draft], last_seq: int, now_ms: int) -> list[Entry]:
    return [
        Entry(seq, draft.kind, now_ms, draft.data, draft.key, draft.attempt)
        for seq, draft in enumerate(drafts, last_seq + 1)
    ]


def born(new: NewRun, number: int, now_ms: int) -> tuple[Run, list[Entry]]:
    """A new run and the entries it is born with. In a group it waits to be admitted."""
    hold = Hold.GROUP if new.place.group is not None and new.failed is None else None
    created: dict[str, Json] = {
        "trigger": new.trigger,
        "actor": new.actor,
        "pipeline": new.pipeline,
        "ref": new.ref,
        "commit": new.commit,
    }
    shared = new.shared
    if shared is not None and shared.step is None:
        created["again"] = {"run": shared.run_id, "number": shared.number}
    elif shared is not None:
        created["shared"] = {
            "run": shared.run_id,
            "number": shared.number,
            "from": shared.step,
        }
    drafts = [Draft(EntryKind.RUN_CREATED, created)]
    if new.failed is not None:
        drafts.append(Draft(EntryKind.RUN_FAILED, {"error": asdict(new.failed)}))
    run = Run(
        id=new.id,
        number=number,
        repository_id=new.repository_id,
        pipeline=new.pipeline,
        ref=new.ref,
        commit=new.commit,
        resume=new.resume,
        trigger=new.trigger,
        payload=new.payload,
        event=new.event,
        actor=new.actor,
        actor_id=new.actor_id,
        trusted=new.trusted,
        created_ms=now_ms,
        state=RunState.QUEUED if new.failed is None else RunState.FAILED,
        reason=None,
        last_seq=len(drafts) + (0 if shared is None else len(shared.entries)),
        fence=0,
        worker=None,
        lease_until_ms=None,
        ready_ms=now_ms if new.failed is None and hold is None else None,
        waits=(),
        started_ms=None,
        ended_ms=None if new.failed is None else now_ms,
        output=None,
        error=new.failed,
        pause_requested=False,
        cancel_requested=False,
        timeout_ms=new.timeout_ms,
        place=new.place,
        hold=hold,
    )
    return run, [*numbered(drafts, 0, now_ms), *(() if shared is None else shared.entries)]


def check(append: Append) -> None:
    """Refuse what no run could take. Raises InvalidRequest, TooLarge."""
    if not append.drafts:
        raise InvalidRequest("an append without entries would move a run unseen", field="drafts")
    if len(append.drafts) > DRAFTS_MAX:
        raise TooLarge(
            f"{len(append.drafts)} entries in one append: at most {DRAFTS_MAX}", field="drafts"
        )


def admits(run: Run, append: Append) -> bool:
    """Whether the append may be written now; False when the journal has moved past it.

    Raises LeaseLost, and Conflict for an ended run whose end the caller has already seen.
    """
    if append.identity not in (None, (run.repository_id, run.number)):
        if append.fence is not None:
            raise LeaseLost(f"{run.id}: the run of this lease is gone; another one has its id")
        raise RunNotFound(f"the run {run.id} is gone; another one has its id")
    if append.fence is not None and (run.worker is None or run.fence != append.fence):
        raise LeaseLost(
            f"{run.id}: the lease {append.fence} has ended; the run is at lease {run.fence}"
        )
    if append.expected_seq > run.last_seq:
        raise InternalError(
            f"{run.id}: entry {append.expected_seq} is expected, the journal has {run.last_seq}"
        )
    if append.expected_seq < run.last_seq:
        return False
    if run.state.terminal:
        raise Conflict(f"{run.id} has ended ({run.state}); nothing can be added to it")
    return True


def moved(run: Run, append: Append, now_ms: int) -> Run:
    """The run after an admitted append."""
    update = append.update
    ended = update.state.terminal
    held = update.hold and run.worker is not None and not ended
    # One at its limit is offered again: if there is no room, the next claim holds it again.
    hold = Hold.GROUP if run.hold is Hold.GROUP and not ended else None
    claimable = not held and hold is None and update.state in CLAIMABLE
    return replace(
        run,
        commit=update.commit,
        state=update.state,
        reason=update.reason,
        last_seq=run.last_seq + len(append.drafts),
        worker=run.worker if held else None,
        lease_until_ms=run.lease_until_ms if held else None,
        ready_ms=update.ready_ms if claimable else None,
        waits=update.waits,
        ended_ms=now_ms if ended else None,
        output=update.output,
        error=update.error,
        pause_requested=update.pause_requested,
        cancel_requested=update.cancel_requested,
        hold=hold,
        slot=run.slot and update.state in EXECUTING,
    )


def admitted(run: Run, now_ms: int) -> Run:
    """A held run that is offered to workers."""
    return replace(run, hold=None, ready_ms=now_ms)


def over_limit(run: Run) -> Run:
    """A due run whose repository executes as many as it may."""
    return replace(run, hold=Hold.LIMIT, ready_ms=None)


def due(run: Run, now_ms: int) -> bool:
    return run.worker is None and run.ready_ms is not None and run.ready_ms <= now_ms


def claimed(
    run: Run, worker: WorkerId, *, lease_ms: int, now_ms: int, slot: bool = False
) -> tuple[Run, Entry]:
    """A due run under its new lease; with a `slot` it counts as executing until it waits."""
    fence = run.fence + 1
    draft = Draft(EntryKind.RUN_CLAIMED, {"worker": worker, "fence": fence})
    after = replace(
        run,
        state=RunState.RUNNING,
        last_seq=run.last_seq + 1,
        fence=fence,
        worker=worker,
        lease_until_ms=now_ms + lease_ms,
        ready_ms=None,
        waits=(),
        started_ms=now_ms if run.started_ms is None else run.started_ms,
        slot=slot,
    )
    return after, numbered([draft], run.last_seq, now_ms)[0]


def expired(run: Run, now_ms: int) -> tuple[Run, Entry]:
    """A leased run whose worker has been silent for too long."""
    draft = Draft(EntryKind.LEASE_EXPIRED, {"worker": run.worker})
    after = replace(
        run,
        state=RunState.QUEUED,
        last_seq=run.last_seq + 1,
        worker=None,
        lease_until_ms=None,
        ready_ms=now_ms,
    )
    return after, numbered([draft], run.last_seq, now_ms)[0]
