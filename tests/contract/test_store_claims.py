"""Leases: claiming, renewing, taking back; of runs and of operations. The same on every store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from ci_platform.errors import InvalidRequest
from ci_platform.model import (
    EntryKind,
    Operation,
    OperationState,
    RepositoryId,
    RunState,
    WorkerId,
)
from ci_platform.ports import Claim, Store
from ci_platform.scheduling import Share
from tests.contract.store_values import (
    LEASE_MS,
    WORKER,
    FakeClock,
    append,
    claimed,
    created,
    end,
    new_run,
    note,
    operation,
    started,
    suspend,
    update,
)

OTHER = WorkerId("worker-2")


def claim(store: Store, limit: int = 10, worker: WorkerId = WORKER) -> Sequence[Claim]:
    return store.runs.claim(worker, limit=limit, lease_ms=LEASE_MS)


def claim_operations(store: Store, worker: WorkerId = WORKER, limit: int = 10) -> list[Operation]:
    return list(store.operations.claim(worker, limit=limit, lease_ms=LEASE_MS))


def names(claims: Sequence[Claim]) -> list[str]:
    return [claim.run.id.removeprefix("run_") for claim in claims]


def test_a_claimed_run_is_leased_under_a_new_fence(store: Store, clock: FakeClock) -> None:
    created(store)
    clock.advance(5)
    (found,) = claim(store)
    run = found.run
    assert (run.state, run.worker, run.fence) == (RunState.RUNNING, WORKER, 1)
    assert (run.ready_ms, run.lease_until_ms) == (None, clock.now_ms() + LEASE_MS)
    assert run.started_ms == clock.now_ms()
    assert run == store.runs.get(run.id)


def test_a_claim_brings_the_whole_journal(store: Store) -> None:
    created(store)
    suspended = suspend(store, claimed(store), ready_ms=0)
    append(store, suspended, note({"n": 1}), to=update(suspended, RunState.QUEUED, ready_ms=0))
    (found,) = claim(store)
    assert [entry.seq for entry in found.entries] == [1, 2, 3, 4, 5]
    assert found.entries[-1].kind is EntryKind.RUN_CLAIMED
    assert found.entries[-1].data == {"worker": WORKER, "fence": 2}
    assert list(found.entries) == list(store.runs.journal(found.run.id))


def test_a_claim_takes_no_more_of_a_repository_than_its_share(store: Store) -> None:
    flood = [new_run(f"a{number:03}", repository="repo_a") for number in range(200)]
    store.runs.create(flood)
    created(store, "b", repository="repo_b")
    share = Share(3, {})
    claims = store.runs.claim(WORKER, limit=10, lease_ms=LEASE_MS, share=share)
    assert sorted(names(claims)) == ["a000", "a001", "a002", "b"]
    full = Share(3, {"repo_a": 3})
    assert store.runs.claim(WORKER, limit=10, lease_ms=LEASE_MS, share=full) == []
    created(store, "c", repository="repo_c")
    claims = store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS, share=full)
    assert names(claims) == ["c"]
    claims = store.runs.claim(WORKER, limit=10, lease_ms=LEASE_MS, share=Share(3, {"repo_a": 2}))
    assert names(claims) == ["a003"]


def test_a_run_is_claimed_once(store: Store) -> None:
    created(store)
    assert len(claim(store)) == 1
    assert claim(store, worker=OTHER) == []


def test_the_first_claim_starts_the_clock_of_the_run_and_no_later_one(
    store: Store, clock: FakeClock
) -> None:
    started_ms = clock.now_ms()
    created(store)
    suspend(store, claimed(store), ready_ms=0)
    clock.advance(1000)
    assert claimed(store).started_ms == started_ms


def test_a_sleeping_run_is_claimed_when_its_time_has_come(store: Store, clock: FakeClock) -> None:
    created(store)
    suspend(store, claimed(store), ready_ms=clock.now_ms() + 100)
    assert claim(store) == []
    clock.advance(99)
    assert claim(store) == []
    clock.advance(1)
    assert names(claim(store)) == ["one"]


def test_a_run_without_a_time_is_not_claimed(store: Store) -> None:
    created(store)
    suspend(store, claimed(store))
    assert claim(store) == []
    assert store.runs.next_ready_ms() is None


def test_a_run_shown_as_running_without_a_lease_is_claimed_when_due(store: Store) -> None:
    run = started(store)
    append(store, run, to=update(run, RunState.RUNNING, hold=False, ready_ms=0), fence=run.fence)
    assert names(claim(store)) == ["one"]


def test_repositories_take_turns(store: Store) -> None:
    flood = [new_run(f"a{n}", repository="repo_a") for n in range(6)]
    few = [new_run(f"b{n}", repository="repo_b") for n in range(2)]
    store.runs.create([*flood, *few, new_run("c0", repository="repo_c")])
    assert names(claim(store, 4)) == ["a0", "b0", "c0", "a1"]
    assert names(claim(store, 2)) == ["b1", "a2"]
    assert names(claim(store, 9)) == ["a3", "a4", "a5"]


def test_the_oldest_due_run_of_a_repository_goes_first(store: Store, clock: FakeClock) -> None:
    created(store, "1")
    suspend(store, claimed(store), ready_ms=clock.now_ms() + 10)
    created(store, "2")
    suspend(store, claimed(store), ready_ms=clock.now_ms() + 5)
    clock.advance(20)
    created(store, "3")
    assert names(claim(store, 2)) == ["2", "1"]
    assert names(claim(store, 2)) == ["3"]


def test_a_flood_of_one_repository_holds_up_no_other(store: Store, clock: FakeClock) -> None:
    store.runs.create([new_run(f"flood{n}", repository="repo_m") for n in range(700)])
    clock.advance(1)
    late = [f"repo_{letter}" for letter in "abcxyz"]
    store.runs.create([new_run(name, repository=name) for name in late])
    first, second = claim(store, 4), claim(store, 4)
    served = [one.run.repository_id for one in (*first, *second)]
    assert set(served) == {*late, "repo_m"}
    assert names(claim(store, 3)) == ["flood2", "flood3", "flood4"]


def test_beside_a_flood_fifty_repositories_get_on_as_if_it_were_one_more(
    store: Store, clock: FakeClock
) -> None:
    others = [f"repo_{number:02}" for number in range(50)]
    store.runs.create([new_run(f"asleep{name}", repository=name) for name in others])
    for one in claim(store, 64):
        suspend(store, one.run, ready_ms=clock.now_ms() + 3_600_000)
    store.runs.create([new_run(f"flood{n}", repository="repo_25f") for n in range(700)])
    clock.advance(1)
    store.runs.create([new_run(f"due{name}", repository=name) for name in others])
    served = [one.run.repository_id for _ in range(7) for one in claim(store, 8)]
    assert set(others) <= set(served)  # 51 repositories, 56 places
    assert served.count(RepositoryId("repo_25f")) <= 6
    store.runs.create([new_run("late", repository="repo_07")])
    assert "late" in names(claim(store, 2))


def test_of_many_who_claim_at_once_none_gets_what_another_has(store: Store) -> None:
    store.runs.create([new_run(f"{n}", repository=f"repo_{n % 7}") for n in range(120)])

    def drain(number: int) -> list[str]:
        found: list[str] = []
        misses = 0
        while misses < 3:  # a claim may find all its candidates taken
            claims = claim(store, 5, WorkerId(f"worker-{number}"))
            found += names(claims)
            misses = 0 if claims else misses + 1
        return found

    with ThreadPoolExecutor(6) as pool:
        found = [name for part in pool.map(drain, range(6)) for name in part]
    assert sorted(found, key=int) == [str(n) for n in range(120)]


def test_renewing_lengthens_what_the_worker_still_holds(store: Store, clock: FakeClock) -> None:
    run = started(store)
    append(store, run, fence=run.fence, effects=[operation()])
    claim_operations(store)
    created(store, "2")
    claimed(store, worker=OTHER)
    clock.advance(LEASE_MS - 1)
    store.runs.renew(WORKER, lease_ms=LEASE_MS)
    clock.advance(2)
    assert store.runs.expire() == 1  # the other worker's
    assert store.runs.get(run.id).worker == WORKER
    assert store.runs.get(run.id).lease_until_ms == clock.now_ms() + LEASE_MS - 2


def test_only_what_a_worker_knows_of_is_renewed(store: Store, clock: FakeClock) -> None:
    known, lost = started(store, "known"), started(store, "lost")
    append(store, known, fence=known.fence, effects=[operation()])
    (command,) = claim_operations(store)
    clock.advance(LEASE_MS - 1)
    store.runs.renew(WORKER, lease_ms=LEASE_MS, held=[known.id, command.id, "run_of_another"])
    clock.advance(2)
    assert store.runs.expire() == 1
    assert store.runs.get(known.id).worker == WORKER
    assert store.runs.get(lost.id).worker is None
    found = store.operations.get(command.id)
    assert found is not None and found.worker == WORKER


def test_a_lease_that_ran_out_makes_the_run_queued_again(store: Store, clock: FakeClock) -> None:
    run = started(store)
    clock.advance(LEASE_MS - 1)
    assert store.runs.expire() == 0
    clock.advance(1)
    assert store.runs.expire() == 1
    expired = store.runs.get(run.id)
    assert (expired.state, expired.worker, expired.fence) == (RunState.QUEUED, None, 1)
    assert expired.ready_ms == clock.now_ms()
    last = store.runs.journal(run.id)[-1]
    assert (last.kind, last.data) == (EntryKind.LEASE_EXPIRED, {"worker": WORKER})
    assert claimed(store, worker=OTHER).fence == 2
    assert store.runs.expire() == 0


def test_leases_are_taken_back_a_few_at_a_time(store: Store, clock: FakeClock) -> None:
    store.runs.create([new_run(str(n)) for n in range(5)])
    claim(store)
    clock.advance(LEASE_MS)
    assert [store.runs.expire(limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_all_of_a_dead_worker_is_released_at_once(store: Store) -> None:
    run = started(store)
    append(store, run, fence=run.fence, effects=[operation()])
    claim_operations(store)
    created(store, "2")
    claimed(store, worker=OTHER)
    assert store.runs.release(WORKER) == 2
    assert store.runs.get(run.id).state is RunState.QUEUED
    assert [one.fence for one in claim_operations(store, OTHER)] == [2]
    assert store.runs.release(None) == 2
    assert store.runs.release(None) == 0


def test_an_operation_is_claimed_once_when_its_time_has_come(
    store: Store, clock: FakeClock
) -> None:
    run = started(store)
    later = operation("op_2", ready_ms=clock.now_ms() + 100)
    append(store, run, fence=run.fence, effects=[operation("op_1"), later])
    (one,) = claim_operations(store)
    assert (one.id, one.state, one.fence) == ("op_1", OperationState.RUNNING, 1)
    assert (one.worker, one.lease_until_ms) == (WORKER, clock.now_ms() + LEASE_MS)
    assert one == store.operations.get(one.id)
    assert claim_operations(store, OTHER) == []
    clock.advance(100)
    assert [one.id for one in claim_operations(store, OTHER)] == ["op_2"]


def test_operations_take_turns_by_repository(store: Store) -> None:
    for name, repository in (("1", "repo_a"), ("2", "repo_b")):
        created(store, name, repository=repository)
        run = claimed(store)
        effects = [operation(f"op_{name}{n}") for n in range(3)]
        append(store, run, fence=run.fence, effects=effects)
    assert [one.id for one in claim_operations(store, limit=4)] == [
        "op_10",
        "op_20",
        "op_11",
        "op_21",
    ]


def test_an_operation_whose_lease_ran_out_goes_to_the_next_worker(
    store: Store, clock: FakeClock
) -> None:
    run = started(store)
    append(store, run, fence=run.fence, effects=[operation()])
    claim_operations(store)
    clock.advance(LEASE_MS)
    store.runs.renew(OTHER, lease_ms=LEASE_MS)
    assert store.runs.expire() == 2  # the run's too
    (again,) = claim_operations(store, OTHER)
    assert (again.fence, again.worker, again.attempt) == (2, OTHER, 1)


def test_an_operation_closed_without_an_entry_is_done_if_still_held(store: Store) -> None:
    run = started(store)
    append(store, run, fence=run.fence, effects=[operation()])
    (one,) = claim_operations(store)
    store.operations.close(one.id, fence=one.fence + 1)
    found = store.operations.get(one.id)
    assert found is not None and found.state is OperationState.RUNNING
    store.operations.close(one.id, fence=one.fence)
    store.operations.close(one.id, fence=one.fence)
    found = store.operations.get(one.id)
    assert found is not None
    assert (found.state, found.worker) == (OperationState.DONE, None)


def test_the_next_due_time_is_of_runs_and_operations(store: Store, clock: FakeClock) -> None:
    assert store.runs.next_ready_ms() is None
    created(store)
    assert store.runs.next_ready_ms() == clock.now_ms()
    run = claimed(store)
    append(store, run, fence=run.fence, effects=[operation(ready_ms=clock.now_ms() + 50)])
    assert store.runs.next_ready_ms() == clock.now_ms() + 50
    current = store.runs.get(run.id)
    suspend(store, current, ready_ms=clock.now_ms() + 20)
    assert store.runs.next_ready_ms() == clock.now_ms() + 20


def test_what_is_due_for_longest_is_a_run_that_waits_for_a_worker(
    store: Store, clock: FakeClock
) -> None:
    assert store.runs.due_since_ms() is None
    suspend(store, started(store, "sleeper"), ready_ms=clock.now_ms() + 20)
    assert store.runs.due_since_ms() is None, "its time has not come"
    clock.advance(10)
    created(store, "newer")
    created(store, "newest")
    assert store.runs.due_since_ms() == clock.now_ms()
    clock.advance(10)
    assert store.runs.due_since_ms() == clock.now_ms() - 10
    claim(store, limit=3)
    assert store.runs.due_since_ms() is None


def test_an_ended_run_is_never_due(store: Store) -> None:
    end(store, started(store))
    assert store.runs.next_ready_ms() is None
    assert claim(store) == []


@pytest.mark.parametrize("limit", [0, -1, 129])
def test_a_claim_of_no_or_too_many_is_refused(store: Store, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        claim(store, limit)
    with pytest.raises(InvalidRequest, match="limit"):
        claim_operations(store, limit=limit)
