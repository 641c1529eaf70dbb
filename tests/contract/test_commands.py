"""What people's commands write, on every store: the change and the audit's note of it together,
and an event that is sent again only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from ci_platform.commands import Parts
from ci_platform.commands.approvals import Approvals
from ci_platform.commands.runs import Runs
from ci_platform.effects import OpenApproval
from ci_platform.errors import Conflict, InvalidRequest, RunExists, StoreUnavailable
from ci_platform.model import Actor, AuditNote, Draft, EntryKind, Json, Run, RunState
from ci_platform.ports import Append, Appended, Store
from ci_platform.testing import FakeSource
from tests.contract.store_values import GATE, append, created, end, new_run, note, update
from tests.contract.store_values import FakeClock as Clock

ADA = Actor(kind="user", id="usr_ada", name="ada", admin=True)
NOTE = AuditNote(5, "ann", "run paused", "run_one", {})


def parts(store: Store, clock: Clock) -> Parts:
    return Parts(
        store=store,
        source=FakeSource(),
        repositories=cast(Any, None),
        outbox=cast(Any, None),
        describe=cast(Any, None),
        clock=clock,
        base_url="http://sluice.test",
    )


def told(store: Store) -> list[tuple[Json, Json]]:
    """Oldest first."""
    return [(one["action"], one["subject"]) for one in store.audit.list()][::-1]


def events(store: Store, run: Run) -> list[Json]:
    entries = store.runs.journal(run.id)
    return [dict(one.data) for one in entries if one.kind is EntryKind.EVENT_RECEIVED]


# --- an event with an id --------------------------------------------------------------------------


def test_an_event_with_an_id_is_taken_once_also_when_its_run_has_ended(
    store: Store, clock: Clock
) -> None:
    run, runs = created(store), Runs(parts(store, clock))
    first = runs.send_event(ADA, run.id, "go", {"n": 1}, id="d-1")
    assert runs.send_event(ADA, run.id, "go", {"n": 1}, id="d-1") == first
    assert runs.send_event(ADA, run.id, "go", {"n": 1}, id="d-2").last_seq == first.last_seq + 1
    expected = {"type": "go", "payload": {"n": 1}, "actor": "ada"}
    assert events(store, run) == [expected | {"id": "d-1"}, expected | {"id": "d-2"}]
    ended = runs.cancel(ADA, run.id)
    assert runs.send_event(ADA, run.id, "go", {"n": 1}, id="d-1") == ended
    assert told(store) == [("event go sent", run.id)] * 2 + [("run cancelled", run.id)]


@pytest.mark.parametrize(("type", "payload"), [("go", True), ("go", 1.0), ("stop", 1)])
def test_another_event_under_the_same_id_is_a_conflict(
    store: Store, clock: Clock, type: str, payload: Json
) -> None:
    run, runs = created(store), Runs(parts(store, clock))
    runs.send_event(ADA, run.id, "go", 1, id="d-1")
    with pytest.raises(Conflict, match="run_one has had the event 'd-1' with another"):
        runs.send_event(ADA, run.id, type, payload, id="d-1")
    assert len(events(store, run)) == 1


def test_an_id_that_two_send_at_once_is_taken_once(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's event is written between this one's look and its append."""
    run, runs = created(store), Runs(parts(store, clock))
    whole = store.runs.append
    turns: list[Callable[[], object]] = [
        lambda: runs.send_event(ADA, run.id, "go", 1, id="d-1"),
    ]

    def late(wanted: Append) -> Appended:
        if turns:
            turns.pop()()
        return whole(wanted)

    monkeypatch.setattr(store.runs, "append", late)
    runs.send_event(ADA, run.id, "go", 1, id="d-1")
    assert len(events(store, run)) == 1


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 257])
def test_an_id_of_an_event_is_text_of_256_characters_at_most(
    store: Store, clock: Clock, bad: str
) -> None:
    run = created(store)
    with pytest.raises(InvalidRequest) as caught:
        Runs(parts(store, clock)).send_event(ADA, run.id, "go", 1, id=bad)
    assert caught.value.field == "id"


# --- the audit ------------------------------------------------------------------------------------


def test_a_change_and_its_note_are_written_together_or_not_at_all(store: Store) -> None:
    run = created(store)
    wanted = Append(run.id, run.last_seq, (note(),), update(run), note=NOTE)
    assert store.runs.append(wanted).applied
    assert not store.runs.append(wanted).applied  # the journal has moved past it
    assert told(store) == [("run paused", "run_one")]
    bad = AuditNote(5, "nul\0", "run paused", "run_one", {})
    seq = run.last_seq + 1
    with pytest.raises(InvalidRequest, match="actor"):
        store.runs.append(Append(run.id, seq, (note(),), update(run), note=bad))
    assert len(store.runs.journal(run.id)) == seq
    with pytest.raises(Conflict):
        store.runs.delete(run.id, note=NOTE)
    ended = end(store, store.runs.get(run.id))
    store.runs.delete(ended.id, note=AuditNote(6, "ann", "run deleted", run.id, {}))
    assert told(store) == [("run paused", "run_one"), ("run deleted", "run_one")]


def test_of_a_batch_the_audit_log_tells_of_the_runs_that_it_created(store: Store) -> None:
    names = ("one", "two", "three")
    created(store, "two")
    new = [new_run(name) for name in names]
    notes = [AuditNote(1, "ann", "run started", one.id, {}) for one in new]
    with pytest.raises(RunExists):
        store.runs.create(new, notes=notes)
    assert told(store) == []
    store.runs.create(new, skip_existing=True, notes=notes)
    assert told(store) == [("run started", "run_one"), ("run started", "run_three")]


def test_every_command_on_a_run_writes_its_note_with_the_change(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them asks for a second transaction."""

    def refused(*_: object, **__: object) -> None:
        raise StoreUnavailable("a second transaction")

    monkeypatch.setattr(store.audit, "record", refused)
    made = parts(store, clock)
    run, runs = created(store), Runs(made)
    opened = OpenApproval(GATE, {"approvers": [], "required": 2, "allow_self": True}, None)
    config = {"config": {"approvers": [], "required": 2}}
    started = Draft(EntryKind.STEP_STARTED, config, GATE, 1)
    append(store, run, started, to=update(run, RunState.QUEUED, ready_ms=0), effects=[opened])
    runs.pause(ADA, run.id)
    runs.pause(ADA, run.id)  # changes nothing, and is told of once
    runs.resume(ADA, run.id)
    runs.send_event(ADA, run.id, "go", None)
    Approvals(made).decide(ADA, run.id, GATE.name, decision="approve")
    Approvals(made).decide(ADA, run.id, GATE.name, decision="reject")  # the first answer counts
    runs.cancel(ADA, run.id)
    runs.delete(ADA, run.id)
    actions = ["run paused", "run resumed", "event go sent", "approval approved"]
    actions += ["run cancelled", "run deleted"]
    assert told(store) == [(action, run.id) for action in actions]
