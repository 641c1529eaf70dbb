"""What housekeeping asks of a store, and the rows of workers: the same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ci_platform.model import Draft, EntryKind, RepositoryId, RunId, WorkerId
from ci_platform.ports import Store
from ci_platform.ports.hooks import Delivery, Hook
from ci_platform.ports.housekeeping import WorkerRecord
from tests.contract.store_values import (
    BUILD,
    REPO,
    WORKER,
    FakeClock,
    append,
    claimed,
    created,
    end,
    new_run,
    note,
    started,
    update,
)

DAY_MS = 86_400_000
SELF = WorkerRecord(WorkerId("w1"), "host", 4711, 5, 10, 10_000, ("linux", "gpu"))


def ended(store: Store, name: str, *, repository: str = REPO) -> RunId:
    created(store, name, repository=repository)
    run = claimed(store)
    end(store, run)
    return run.id


def old_ids(store: Store, before_ms: int, *, keep: int = 0, limit: int = 500) -> list[str]:
    found: list[str] = []
    after = 0
    while True:
        page = store.runs.old(before_ms=before_ms, keep=keep, after=after, limit=limit)
        found += [run.id for run in page.runs]
        after = page.cursor
        if after == 0:
            return found


def test_only_runs_that_ended_before_are_old(store: Store, clock: FakeClock) -> None:
    first = ended(store, "a")
    created(store, "waiting")
    clock.advance(DAY_MS)
    young = ended(store, "b")
    assert old_ids(store, clock.now_ms()) == [first]
    assert old_ids(store, clock.now_ms() + 1) == [first, young]


def test_the_newest_of_each_pipeline_are_never_old(store: Store, clock: FakeClock) -> None:
    ours = [ended(store, f"a{n}") for n in range(4)]
    theirs = [ended(store, f"b{n}", repository="repo_b") for n in range(3)]
    created(store, "still queued")  # it has not ended, so it keeps no place
    clock.advance(DAY_MS)
    assert old_ids(store, clock.now_ms(), keep=3) == ours[:1]
    assert old_ids(store, clock.now_ms(), keep=2) == ours[:2] + theirs[:1]
    assert old_ids(store, clock.now_ms(), keep=4) == []


def test_old_runs_are_found_page_by_page(store: Store, clock: FakeClock) -> None:
    runs = [ended(store, f"r{n}") for n in range(5)]
    clock.advance(DAY_MS)
    assert old_ids(store, clock.now_ms(), keep=1, limit=2) == runs[:4]


def test_an_old_run_tells_the_commit_it_began_with_and_its_last(
    store: Store, clock: FakeClock
) -> None:
    run = started(store)
    to = replace(update(run, run.state), commit="d" * 40)
    moved = append(store, run, note(), to=to, fence=run.fence).run
    end(store, moved)
    clock.advance(DAY_MS)
    (old,) = store.runs.old(before_ms=clock.now_ms(), keep=0).runs
    assert list(old.commits) == ["c" * 40, "d" * 40]
    assert old.repository_id == REPO


def test_commits_are_used_by_the_runs_of_their_repository(store: Store) -> None:
    store.runs.create([replace(new_run("x"), commit="a" * 40)])
    asked = ["a" * 40, "b" * 40]
    assert store.runs.commits_used(REPO, asked) == {"a" * 40}
    assert store.runs.commits_used(RepositoryId("repo_b"), asked) == set()
    assert store.runs.commits_used(REPO, []) == set()


def test_a_layer_is_used_until_the_last_run_that_names_it_is_deleted(store: Store) -> None:
    digest, other = "1" * 64, "2" * 64
    ids = []
    for name in ("one", "two"):
        created(store, name)
        run = claimed(store)
        passed = Draft(
            EntryKind.STEP_PASSED, {"value": {"exit_code": 0, "layer": digest}}, BUILD, 1
        )
        none = Draft(EntryKind.STEP_PASSED, {"value": {"layer": None}}, replace(BUILD, name="b"), 1)
        run = append(store, run, passed, none, passed, fence=run.fence).run
        end(store, run)
        ids.append(run.id)
    assert store.runs.layers_used([digest, other]) == {digest}
    store.runs.delete(ids[0])
    assert store.runs.layers_used([digest]) == {digest}
    store.runs.delete(ids[1])
    assert store.runs.layers_used([digest]) == set()


def test_expired_links_are_forgotten(store: Store) -> None:
    store.identity.put_link("d1", "setup", 100)
    store.identity.put_link("d2", "reset", 200)
    assert store.identity.forget_links(150) == 1
    assert store.identity.forget_links(150) == 0
    assert store.identity.take_link("d2", 160) == "reset"


def test_finished_deliveries_are_forgotten_after_thirty_days(store: Store) -> None:
    store.hooks.add(Hook("hook_1", REPO, "github", b"s", None, 0))
    for name in ("done", "pending", "later"):
        at_ms = 31 * DAY_MS if name == "later" else 0
        store.hooks.enqueue(Delivery("hook_1", name, "push", b"{}", at_ms))
        if name != "pending":
            store.hooks.finish("hook_1", name, "started")
    store.hooks.forget(31 * DAY_MS)
    assert store.hooks.first_delivery("hook_1", "done", 31 * DAY_MS)
    assert not store.hooks.first_delivery("hook_1", "pending", 31 * DAY_MS)
    assert not store.hooks.first_delivery("hook_1", "later", 31 * DAY_MS)


# --- workers --------------------------------------------------------------------------------------


def test_a_worker_is_shown_from_its_first_beat_until_it_is_gone(store: Store) -> None:
    assert store.workers.list() == []
    store.workers.beat(SELF)
    store.workers.beat(replace(SELF, seen_ms=15, obstacle="the disk is full"))
    assert [one.obstacle for one in store.workers.list()] == ["the disk is full"]
    store.workers.beat(replace(SELF, seen_ms=20))
    store.workers.beat(replace(SELF, id=WorkerId("w0"), labels=()))
    assert store.workers.list() == [
        replace(SELF, id=WorkerId("w0"), labels=()),
        replace(SELF, seen_ms=20),
    ]
    store.workers.gone(SELF.id)
    store.workers.gone(SELF.id)
    assert [one.id for one in store.workers.list()] == ["w0"]


def test_a_worker_is_shown_with_what_it_holds(store: Store) -> None:
    store.workers.beat(replace(SELF, id=WORKER))
    started(store)
    (one,) = store.workers.list()
    assert (one.runs, one.operations) == (1, 0)


def test_workers_that_died_are_forgotten(store: Store) -> None:
    store.workers.beat(SELF)
    store.workers.beat(replace(SELF, id=WorkerId("w2"), seen_ms=30))
    assert store.workers.forget(20) == 1
    assert [one.id for one in store.workers.list()] == ["w2"]


def test_a_worker_that_misses_its_beats_is_not_taken_to_be_alive() -> None:
    assert SELF.alive(SELF.seen_ms + 29_999)
    assert not SELF.alive(SELF.seen_ms + 30_000)


# --- turns ----------------------------------------------------------------------------------------


def test_a_duty_is_given_to_one_caller_in_its_period(store: Store, clock: FakeClock) -> None:
    assert store.duties.take("prune", every_ms=1000)
    assert not store.duties.take("prune", every_ms=1000)
    assert store.duties.take("layers", every_ms=1000)
    clock.advance(999)
    assert not store.duties.take("prune", every_ms=1000)
    clock.advance(1)
    assert store.duties.take("prune", every_ms=1000)


def test_of_many_who_ask_at_once_one_gets_the_turn(store: Store, clock: FakeClock) -> None:
    for _ in range(3):
        with ThreadPoolExecutor(6) as pool:
            turns = pool.map(lambda _: store.duties.take("prune", every_ms=1000), range(6))
        assert sum(turns) == 1
        clock.advance(1000)


def test_a_worker_that_is_asked_to_drain_is_told_with_each_heartbeat(store: Store) -> None:
    assert not store.workers.drain(SELF.id)
    assert not store.workers.beat(SELF)
    assert store.workers.drain(SELF.id)
    assert [one.draining for one in store.workers.list()] == [True]
    assert store.workers.beat(SELF)
    assert store.workers.beat(replace(SELF, draining=True))
    store.workers.gone(SELF.id)
    assert not store.workers.beat(SELF)  # who takes its place
    assert [(one.draining, one.capacity) for one in store.workers.list()] == [(False, 0)]
