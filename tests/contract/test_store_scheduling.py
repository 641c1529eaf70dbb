"""Groups, limits and priorities: the same on every store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from ci_platform.model import Draft, EntryKind, Run, RunId, RunState, WorkerId
from ci_platform.ports import RunFilter, Store
from ci_platform.scheduling import AHEAD_MAX, Hold, OnNew, Place, RunLimits, Schedule, Standing
from ci_platform.store import open_store
from ci_platform.testing.store import InMemoryStore
from tests.contract.conftest import KEY
from tests.contract.store_values import (
    LEASE_MS,
    REPO,
    WORKER,
    FakeClock,
    append,
    end,
    new_run,
    note,
    suspend,
    update,
)

ANYWHERE = Place()
MAIN = Place("main")
Limited = Callable[[RunLimits], Store]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def limited(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Limited]:
    with ExitStack() as opened:

        def open_limited(limits: RunLimits) -> Store:
            if request.param == "memory":
                return opened.enter_context(closing(InMemoryStore(clock, limits)))
            name = "sqlite_url" if request.param == "sqlite" else "empty_postgres_url"
            url = request.getfixturevalue(name)
            return opened.enter_context(
                closing(open_store(url, clock=clock, key=KEY, limits=limits))
            )

        yield open_limited


def create(store: Store, *names: str, place: Place = ANYWHERE, repository: str = REPO) -> list[Run]:
    new = [replace(new_run(name, repository=repository), place=place) for name in names]
    return store.runs.create(new)


def claim(store: Store, limit: int = 10) -> list[str]:
    """Claim what is due; the names of the runs."""
    claims = store.runs.claim(WORKER, limit=limit, lease_ms=LEASE_MS)
    return [one.run.id.removeprefix("run_") for one in claims]


def finish(store: Store, name: str) -> None:
    end(store, get(store, name))


def get(store: Store, name: str) -> Run:
    return store.runs.get(RunId(f"run_{name}"))


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_runs_one_after_the_other_in_order_of_creation(store: Store) -> None:
    first, second, third = create(store, "a", "b", "c", place=MAIN)
    assert (first.hold, second.hold, third.hold) == (None, Hold.GROUP, Hold.GROUP)
    assert (first.ready_ms, second.ready_ms) == (first.created_ms, None)
    for name in ("a", "b", "c"):
        assert claim(store) == [name]
        assert claim(store) == []
        finish(store, name)
    assert claim(store) == []


def test_a_run_reads_back_with_its_place(store: Store) -> None:
    place = Place("deploy", 3, OnNew.CANCEL_QUEUED, 7)
    (run,) = create(store, "a", place=place)
    assert store.runs.get(run.id) == run
    assert run.place == place


def test_groups_are_apart_and_each_has_its_own_limit(store: Store) -> None:
    create(store, "a1", "a2", "a3", place=Place("a", 2))
    create(store, "b1", "b2", place=Place("b"))
    create(store, "other", place=Place("a", 2), repository="repo_b")
    create(store, "free")
    assert sorted(claim(store)) == ["a1", "a2", "b1", "free", "other"]


def test_a_run_that_waits_keeps_the_slot_of_its_group(store: Store, clock: FakeClock) -> None:
    create(store, "a", "b", place=MAIN)
    claim(store)
    suspend(store, get(store, "a"))
    assert claim(store) == []
    assert get(store, "b").hold is Hold.GROUP


def test_a_cancelled_run_that_was_held_frees_nothing(store: Store) -> None:
    create(store, "a", "b", "c", place=MAIN)
    finish(store, "b")
    assert get(store, "b").hold is None
    assert claim(store) == ["a"]
    finish(store, "a")
    assert claim(store) == ["c"]


def test_an_event_does_not_let_a_held_run_go(store: Store, clock: FakeClock) -> None:
    create(store, "a", "b", place=MAIN)
    run = get(store, "b")
    to = update(run, RunState.QUEUED, ready_ms=clock.now_ms())
    append(store, run, note(), to=to)
    run = get(store, "b")
    assert (run.hold, run.ready_ms) == (Hold.GROUP, None)
    assert claim(store) == ["a"]


def test_a_paused_run_is_passed_over_and_admitted_when_it_is_resumed(
    store: Store, clock: FakeClock
) -> None:
    create(store, "a", "b", "c", place=MAIN)
    run = get(store, "b")
    append(store, run, Draft(EntryKind.RUN_PAUSED), to=update(run, RunState.PAUSED))
    claim(store)
    finish(store, "a")
    assert claim(store) == ["c"]
    finish(store, "c")
    run = get(store, "b")
    to = update(run, RunState.QUEUED, ready_ms=clock.now_ms())
    append(store, run, Draft(EntryKind.RUN_RESUMED), to=to)
    assert claim(store) == ["b"]


def test_a_higher_priority_is_admitted_first(store: Store) -> None:
    create(store, "a", "b", place=MAIN)
    create(store, "urgent", place=replace(MAIN, priority=5))
    claim(store)
    finish(store, "a")
    assert claim(store) == ["urgent"]


def test_two_who_free_slots_at_once_admit_two(store: Store) -> None:
    names = [f"r{n}" for n in range(24)]
    create(store, *names, place=Place("main", 4))
    done: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        while len(done) < len(names):
            running = claim(store)
            assert len(running) == 4
            list(pool.map(lambda name: finish(store, name), running))
            done += running
    assert done == names


def test_runs_created_at_once_never_exceed_the_limit(store: Store) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: create(store, f"r{n}", place=Place("main", 2)), range(12)))
    assert len(claim(store)) == 2


# --- superseding ----------------------------------------------------------------------------------


def test_a_new_run_ends_all_earlier_ones_of_its_group(store: Store) -> None:
    place = Place("main", on_new=OnNew.CANCEL_RUNNING)
    create(store, "a", "b", place=place)
    create(store, "elsewhere", place=Place("other"))
    for one in store.runs.superseded():
        store.runs.superseded_done(one.by)
    claim(store)
    (new,) = create(store, "c", place=place)
    (found,) = store.runs.superseded()
    assert (found.by, found.number) == (new.id, new.number)
    assert list(found.runs) == ["run_a", "run_b"]
    store.runs.superseded_done(found.by)
    store.runs.superseded_done(found.by)
    assert list(store.runs.superseded()) == []


def test_a_new_run_may_end_only_those_that_have_not_begun(store: Store) -> None:
    place = Place("main", on_new=OnNew.CANCEL_QUEUED)
    create(store, "a", "b", place=place)
    claim(store)
    create(store, "c", place=place)
    last = store.runs.superseded()[-1]
    assert (last.by, list(last.runs)) == ("run_c", ["run_b"])


def test_a_deleted_run_supersedes_nobody(store: Store) -> None:
    create(store, "a", place=Place("main", on_new=OnNew.CANCEL_RUNNING))
    finish(store, "a")
    store.runs.delete(RunId("run_a"))
    assert list(store.runs.superseded()) == []


# --- limits ---------------------------------------------------------------------------------------


def test_no_more_runs_of_a_repository_execute_than_it_may(limited: Limited) -> None:
    store = limited(RunLimits(repository=2))
    create(store, "a", "b", "c", "d")
    create(store, "other", repository="repo_b")
    assert sorted(claim(store)) == ["a", "b", "other"]
    assert claim(store) == []
    assert (get(store, "c").hold, get(store, "c").ready_ms) == (Hold.LIMIT, None)
    finish(store, "a")
    assert claim(store) == ["c"]
    finish(store, "b")
    assert claim(store) == ["d"]


def test_a_run_that_waits_lets_another_execute(limited: Limited, clock: FakeClock) -> None:
    store = limited(RunLimits(repository=1))
    create(store, "a", "b")
    assert claim(store) == ["a"]
    assert claim(store) == []
    suspend(store, get(store, "a"), ready_ms=clock.now_ms() + 1)
    assert claim(store) == ["b"]
    clock.advance(10)
    assert claim(store) == []
    finish(store, "b")
    assert claim(store) == ["a"]


def test_a_run_between_two_of_its_commands_keeps_its_slot(
    limited: Limited, clock: FakeClock
) -> None:
    store = limited(RunLimits(repository=1))
    create(store, "a", "b")
    claim(store)
    run = get(store, "a")
    running = update(run, RunState.RUNNING, hold=False)  # no lease: a command of it executes
    run = append(store, run, note(), to=running, fence=run.fence).run
    assert (claim(store), get(store, "b").hold) == ([], Hold.LIMIT)
    append(store, run, note(), to=update(run, RunState.QUEUED, ready_ms=clock.now_ms()))
    assert claim(store) == ["a"]


def test_a_lost_lease_keeps_its_slot(limited: Limited, clock: FakeClock) -> None:
    store = limited(RunLimits(repository=1))
    create(store, "a", "b")
    claim(store)
    clock.advance(LEASE_MS + 1)
    store.runs.expire()
    assert claim(store) == ["a"]


def test_all_repositories_together_have_a_limit(limited: Limited) -> None:
    store = limited(RunLimits(every=2))
    for name in ("a", "b", "c"):
        create(store, name, repository=f"repo_{name}")
    first = claim(store)
    assert len(first) == 2
    assert claim(store) == []
    finish(store, first[0])
    assert claim(store) == ["c"]


def test_a_run_that_executes_goes_on_however_many_are_due(
    limited: Limited, clock: FakeClock
) -> None:
    store = limited(RunLimits(every=1))
    create(store, "a")
    claim(store)
    create(store, *[f"r{n}" for n in range(150)])
    run = get(store, "a")
    clock.advance(1)
    to = update(run, RunState.QUEUED, ready_ms=clock.now_ms())
    append(store, run, note(), to=to, fence=run.fence)
    assert claim(store) == ["a"]


def test_held_runs_go_on_when_there_is_no_limit_any_more(
    database_url: str, clock: FakeClock
) -> None:
    with closing(open_store(database_url, clock=clock, key=KEY, limits=RunLimits(1))) as store:
        create(store, "a", "b", "c")
        claim(store)
        claim(store)
    with closing(open_store(database_url, clock=clock, key=KEY)) as store:
        store.runs.expire()
        assert claim(store) == ["b", "c"]


def test_claims_at_once_never_exceed_the_limit(limited: Limited) -> None:
    store = limited(RunLimits(repository=3, every=5))
    for repository in ("repo_a", "repo_b"):
        create(store, *[f"{repository}{n}" for n in range(6)], repository=repository)

    def work(n: int) -> int:
        claims = store.runs.claim(WorkerId(f"w{n}"), limit=2, lease_ms=LEASE_MS)
        return len(claims)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(12))) == 5


# --- priorities -----------------------------------------------------------------------------------


def test_a_higher_priority_is_claimed_first_within_its_repository(
    store: Store, clock: FakeClock
) -> None:
    create(store, "old")
    clock.advance(1)
    create(store, "low", place=Place(priority=1))
    create(store, "high", place=Place(priority=9))
    create(store, "theirs", repository="repo_b")
    assert claim(store, 3) == ["high", "theirs", "low"]
    assert claim(store) == ["old"]


def test_a_priority_goes_before_a_long_backlog(store: Store, clock: FakeClock) -> None:
    create(store, *[f"r{n}" for n in range(200)])
    create(store, *[f"b{n}" for n in range(100)], repository="repo_b")
    clock.advance(1)
    create(store, "high", "higher", place=Place(priority=3))
    assert {"high", "higher", "b0"} <= set(claim(store, 4))


# --- for people -----------------------------------------------------------------------------------


def test_a_held_run_says_who_is_ahead_and_who_holds_the_slot(store: Store) -> None:
    runs = create(store, "a", "b", "c", place=MAIN)
    claim(store)
    assert store.runs.standing(runs[1].id) == Standing(0, [1])
    assert store.runs.standing(runs[2].id) == Standing(1, [1])
    assert store.runs.standing(runs[0].id) is None


def test_a_run_at_a_limit_says_who_executes(limited: Limited) -> None:
    store = limited(RunLimits(repository=1))
    create(store, "a", "b", "c")
    claim(store)
    claim(store)
    assert store.runs.standing(RunId("run_c")) == Standing(1, [1])


def test_a_due_run_says_when_all_repositories_are_at_their_limit(limited: Limited) -> None:
    store = limited(RunLimits(every=2))
    create(store, "a", "b", "c")
    create(store, "theirs", repository="repo_b")
    assert store.runs.standing(RunId("run_c")) == Standing(2, [])
    claim(store, 2)
    assert store.runs.standing(RunId("run_c")) == Standing(1, [], every=2)


def test_a_due_run_says_how_many_of_its_repository_are_ahead(store: Store) -> None:
    create(store, "a", "b")
    create(store, "theirs", repository="repo_b")
    assert store.runs.standing(RunId("run_b")) == Standing(1, [])
    assert len(store.runs.list(RunFilter()).runs) == 3


def test_a_due_run_is_behind_what_is_more_urgent_and_what_was_due_before(
    store: Store, clock: FakeClock
) -> None:
    create(store, "late")
    late = store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS)[0].run
    for name, priority in (("high", 9), ("low", 1), ("mine", 0), ("behind", 0)):
        clock.advance(1)
        create(store, name, place=Place(priority=priority))
    clock.advance(1)
    # Due again, and an older run than all of them: but only since now.
    append(store, late, fence=late.fence, to=update(late, RunState.QUEUED, ready_ms=clock.now_ms()))
    ahead = {"high": 0, "low": 1, "mine": 2, "behind": 3, "late": 4}
    for name, count in ahead.items():
        assert store.runs.standing(RunId(f"run_{name}")) == Standing(count, []), name
    assert claim(store, 5) == list(ahead)


@pytest.mark.parametrize("place", [Place(), MAIN, Place(priority=5)])
def test_who_is_ahead_is_counted_to_a_thousand(store: Store, place: Place) -> None:
    names = [f"r{n}" for n in range(AHEAD_MAX + 3)]
    for start in range(0, len(names), 500):
        create(store, *names[start : start + 500], place=place)
    last = store.runs.standing(RunId(f"run_{names[-1]}"))
    assert last is not None and last.ahead == AHEAD_MAX


# --- schedules ------------------------------------------------------------------------------------


def test_schedules_are_replaced_and_those_that_stay_keep_their_time(store: Store) -> None:
    nightly = Schedule(REPO, "CI", "0 3 * * *", "UTC", 100)
    hourly = Schedule(REPO, "CI", "0 * * * *", "UTC", 50)
    theirs = replace(hourly, repository_id="repo_b")
    store.schedules.replace(REPO, [nightly, hourly])
    store.schedules.replace("repo_b", [theirs])
    store.schedules.replace(REPO, [replace(nightly, next_ms=999)])
    assert list(store.schedules.of_repository(REPO)) == [nightly]
    assert list(store.schedules.of_repository("repo_b")) == [theirs]


def test_a_schedule_is_due_until_it_is_moved_and_moved_once(store: Store) -> None:
    nightly = Schedule(REPO, "CI", "0 3 * * *", "UTC", 100)
    hourly = Schedule(REPO, "CI", "0 * * * *", "Europe/Berlin", 50)
    store.schedules.replace(REPO, [nightly, hourly])
    assert list(store.schedules.due(49)) == []
    assert list(store.schedules.due(100)) == [hourly, nightly]
    assert list(store.schedules.due(100, limit=1)) == [hourly]
    assert store.schedules.move(hourly, 200)
    assert not store.schedules.move(hourly, 300)
    assert list(store.schedules.due(200)) == [nightly, replace(hourly, next_ms=200)]
