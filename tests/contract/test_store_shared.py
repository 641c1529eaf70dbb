"""A run that is born with entries of another one: the same on every store."""

from __future__ import annotations

from dataclasses import replace

from ci_platform.model import Entry, EntryKind, RunId, RunState, Shared
from ci_platform.ports import Store
from tests.contract.store_values import BUILD, FakeClock, append, claimed, created, new_run


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
