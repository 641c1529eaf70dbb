"""Commands that not every worker may take: labels, look-ups, what is passed on. On every store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ci_platform.effects import StopOperations
from ci_platform.errors import LeaseLost
from ci_platform.model import Json, LogLine, Operation, RunId, StepKey, WorkerId
from ci_platform.ports import Store
from ci_platform.ports.logs import Held
from tests.contract.store_values import LEASE_MS, WORKER, FakeClock, append, operation, started

OTHER = WorkerId("worker-2")


def queued(store: Store, name: str, **spec: Json) -> None:
    """A run with one command."""
    run = started(store, name)
    key = StepKey.parse(f"sh:{name}")
    opened = operation(f"op_{name}", key=key)
    append(store, run, fence=run.fence, effects=[replace(opened, spec=spec)])


def claim(
    store: Store, *labels: str, worker: WorkerId = WORKER, recall: bool = False, limit: int = 10
) -> Sequence[Operation]:
    return store.operations.claim(
        worker, limit=limit, lease_ms=LEASE_MS, labels=labels, recall=recall
    )


def names(claimed: Sequence[Operation]) -> list[str]:
    return [one.id.removeprefix("op_") for one in claimed]


def test_a_command_goes_only_to_a_worker_that_has_all_its_labels(store: Store) -> None:
    queued(store, "any")
    queued(store, "both", labels=["gpu", "arm64"])
    queued(store, "gpu", labels=["gpu"])
    assert names(claim(store)) == ["any"]
    assert names(claim(store, "arm64", "linux")) == []
    assert names(claim(store, "linux", "gpu")) == ["gpu"]
    assert names(claim(store, "linux", "arm64", "gpu")) == ["both"]


def test_a_worker_is_woken_only_for_what_it_can_do(store: Store, clock: FakeClock) -> None:
    queued(store, "gpu", labels=["gpu"])
    assert store.runs.next_ready_ms(["linux"]) is None
    assert store.runs.next_ready_ms(["linux", "gpu"]) is not None
    assert store.runs.next_ready_ms() is not None
    queued(store, "memo", labels=["gpu"], cache={"inputs": []})
    assert store.runs.next_ready_ms(["linux"]) is not None


def test_what_few_workers_can_do_comes_first_and_holds_nobody_up(store: Store) -> None:
    for number in range(70):
        queued(store, f"any{number}")
        queued(store, f"gpu{number}", labels=["gpu"])
    assert names(claim(store, limit=2)) == ["any0", "any1"]
    assert names(claim(store, "gpu", limit=2)) == ["gpu0", "gpu1"]


def test_a_memoised_command_is_looked_up_by_any_worker_and_run_by_one_that_can(
    store: Store,
) -> None:
    queued(store, "memo", labels=["gpu"], cache={"inputs": []})
    assert claim(store, "gpu") == []
    (looked,) = claim(store, recall=True)
    assert claim(store, recall=True) == []
    store.operations.pass_on(looked)
    assert claim(store, recall=True) == []
    assert claim(store) == []
    (taken,) = claim(store, "gpu")
    assert (taken.fence, taken.lost_worker, taken.attempt) == (2, None, 1)


def test_only_who_holds_a_command_passes_it_on(store: Store, clock: FakeClock) -> None:
    queued(store, "memo", cache={"inputs": []})
    (looked,) = claim(store, recall=True)
    clock.advance(LEASE_MS)
    store.runs.expire()
    with pytest.raises(LeaseLost):
        store.operations.pass_on(looked)
    (again,) = claim(store, worker=OTHER, recall=True)
    with pytest.raises(LeaseLost):
        store.operations.pass_on(looked)
    assert again.lost_worker == WORKER
    store.operations.pass_on(again)
    (taken,) = claim(store)
    assert taken.lost_worker is None


def test_a_command_that_nobody_waits_for_is_not_passed_on(store: Store) -> None:
    queued(store, "memo", cache={"inputs": []})
    (looked,) = claim(store, recall=True)
    run = store.runs.get(looked.run_id)
    append(store, run, fence=run.fence, effects=[StopOperations()])
    with pytest.raises(LeaseLost):
        store.operations.pass_on(looked)


def test_a_lost_command_tells_who_had_it(store: Store, clock: FakeClock) -> None:
    queued(store, "one")
    claim(store)
    clock.advance(LEASE_MS)
    store.runs.expire()
    (again,) = claim(store, worker=OTHER)
    assert (again.fence, again.lost_worker) == (2, WORKER)
    store.runs.release(OTHER)
    (third,) = claim(store)
    assert third.lost_worker == OTHER


def test_who_lost_a_command_writes_no_more_of_its_log(store: Store, clock: FakeClock) -> None:
    queued(store, "one")
    (first,) = claim(store)
    logs, step = store.logs, str(first.key)

    def say(number: int, text: str, held: Operation) -> None:
        line = LogLine(number, clock.now_ms(), "stdout", text)
        logs.append(first.run_id, step, [line], held=Held(held.id, held.fence))

    say(1, "first", first)
    clock.advance(LEASE_MS)
    store.runs.expire()
    with pytest.raises(LeaseLost):  # nobody has it
        say(2, "late", first)
    (second,) = claim(store, worker=OTHER)
    with pytest.raises(LeaseLost):
        say(2, "late", first)
    say(2, "second", second)
    assert [line.text for line in logs.read(first.run_id, step)] == ["first", "second"]


def test_a_run_tells_which_of_its_commands_no_worker_has_taken_and_where_they_stand(
    store: Store, clock: FakeClock
) -> None:
    queued(store, "early")
    queued(store, "gpu", labels=["gpu"])
    run = started(store, "ours")
    keys = [StepKey.parse(f"sh:{name}") for name in ("a", "b", "c", "later")]
    opened = [operation(f"op_{key.name}", key=key) for key in keys]
    opened[2] = replace(opened[2], spec={"labels": ["gpu"]})
    opened[3] = replace(opened[3], ready_ms=clock.now_ms() + 1)  # a retry that is not due
    append(store, run, fence=run.fence, effects=opened)
    a, b, c, later = keys
    assert store.operations.queued(run.id) == {a: 1, b: 2, c: 1}
    assert names(claim(store, limit=2)) == ["early", "a"]
    assert store.operations.queued(run.id) == {b: 0, c: 1}
    clock.advance(1)
    assert store.operations.queued(run.id) == {b: 0, c: 1, later: 1}
    append(store, store.runs.get(run.id), effects=[StopOperations()])
    assert store.operations.queued(run.id) == {}
    assert store.operations.queued(RunId("run_nobody")) == {}


def test_a_command_whose_worker_was_lost_is_queued_again(store: Store, clock: FakeClock) -> None:
    queued(store, "lost")
    claim(store)
    assert store.operations.queued(RunId("run_lost")) == {}
    clock.advance(LEASE_MS + 1)
    store.runs.expire()
    assert list(store.operations.queued(RunId("run_lost")).values()) == [0]
