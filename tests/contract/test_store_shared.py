"""A run that is born with entries of another one: the same on every store."""

from __future__ import annotations

from dataclasses import replace

from ci_platform.effects import CloseApproval, Effect, RecordDecision
from ci_platform.model import Entry, EntryKind, RunId, RunState, Shared
from ci_platform.ports import Store
from tests.contract.store_values import (
    BUILD,
    GATE,
    FakeClock,
    append,
    claimed,
    created,
    end,
    gate,
    new_run,
    started,
)


def test_a_run_is_born_with_what_it_shares_and_goes_on_behind_it(
    store: Store, clock: FakeClock
) -> None:
    old = created(store)
    earlier_ms = clock.now_ms() - 60_000
    entries = [
        Entry(2, EntryKind.STEP_STARTED, earlier_ms, {"config": {}, "base": 0}, BUILD, 1),
        Entry(3, EntryKind.STEP_PASSED, earlier_ms + 1, {"value": {"layer": None}}, BUILD, 1),
    ]
    shared = Shared(old.id, old.number, "sh:deploy", entries)
    (run,) = store.runs.create([replace(new_run("again"), shared=shared)])
    assert (run.state, run.last_seq, run.started_ms) == (RunState.QUEUED, 3, None)
    first, *rest = store.runs.journal(run.id)
    assert first.data["shared"] == {"run": old.id, "number": old.number, "from": "sh:deploy"}
    assert rest == entries
    assert {claimed(store).id, claimed(store).id} == {old.id, RunId("run_again")}
    assert [entry.seq for entry in store.runs.journal(run.id)] == [1, 2, 3, 4]
    assert append(store, store.runs.get(run.id)).applied


def test_a_gate_that_is_shared_keeps_its_answers_and_goes_with_its_own_run(
    store: Store, clock: FakeClock
) -> None:
    old = started(store)
    answer = RecordDecision(GATE, "usr_ada", "ada", "approve", "looks good", "page", {"why": "it"})
    effects: list[Effect] = [
        gate(expires_ms=clock.now_ms() + 9),
        answer,
        CloseApproval(GATE, "approved"),
    ]
    for effect in effects:
        append(store, store.runs.get(old.id), fence=old.fence, effects=[effect])
    before = store.approvals.get(old.id, GATE)
    shared = Shared(old.id, old.number, "sh:deploy", gates=[before])
    (run,) = store.runs.create([replace(new_run("again"), shared=shared)])
    assert store.approvals.get(run.id, GATE) == replace(before, run_id=run.id)
    assert store.approvals.decision(run.id, GATE, "usr_ada") == before.decisions[0]
    assert store.approvals.open() == []
    end(store, store.runs.get(old.id))
    store.runs.delete(old.id)
    assert store.approvals.get(run.id, GATE).decisions == before.decisions


def test_a_run_that_does_all_of_another_again_says_which(store: Store) -> None:
    old = created(store)
    (run,) = store.runs.create([replace(new_run("again"), shared=Shared(old.id, old.number, None))])
    (entry,) = store.runs.journal(run.id)
    assert entry.data["again"] == {"run": old.id, "number": old.number}
    assert "shared" not in entry.data
