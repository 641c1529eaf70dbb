"""The worker on threads: woken, bounded, drained. Waits for threads, never for time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ci_platform.model import Outcome, RepositoryId, Returned, RunState, WorkerId
from ci_platform.ports.sandbox import Activation, ActivationHost
from ci_platform.shell import CommandResult, CommandSpec
from ci_platform.testing import DummyRunner, ScriptedSandbox
from ci_platform.worker.loop import Slots
from tests.unit.engine.journal import start_sh
from tests.unit.worker.world import COMMIT, World, pipeline

SECONDS_MAX = 10.0
FLOOD = RepositoryId("repo_flood")


@contextmanager
def working(world: World) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=world.worker.run_forever, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SECONDS_MAX)
        assert not thread.is_alive(), "the worker does not stop"


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_runs_created_while_it_works_are_executed_at_once() -> None:
    world = World()
    world.settings = replace(world.settings, poll_ms=60_000)  # the bell alone must do it
    world.worker = world.another("w1")
    with working(world):
        run_ids = [
            world.start(pipeline('return (await step.sh("a", "true")).exit_code'))
            for _ in range(10)
        ]
        until(lambda: all(world.state(each).terminal for each in run_ids))
    assert {world.state(each) for each in run_ids} == {RunState.PASSED}


def test_no_more_activations_run_at_once_than_there_are_places() -> None:
    lock = threading.Lock()
    inside = most = 0
    enough = threading.Event()

    def play(activation: Activation, host: ActivationHost) -> Outcome:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if inside == 3:
                enough.set()
        enough.wait(SECONDS_MAX)
        with lock:
            inside -= 1
        return Returned(None)

    world = World(sandbox=ScriptedSandbox(play))
    world.source.put(COMMIT, "")
    world.settings = replace(world.settings, activations_max=3)
    world.worker = world.another("w1")
    run_ids = [world.start() for _ in range(9)]
    with working(world):
        until(lambda: all(world.state(each).terminal for each in run_ids))
    assert most == 3


def test_a_flood_of_one_repository_leaves_places_for_another() -> None:
    inside: list[str] = []
    leave = threading.Event()

    def play(activation: Activation, host: ActivationHost) -> Outcome:
        inside.append(activation.source.repository_id)
        if activation.source.repository_id == FLOOD:
            leave.wait(SECONDS_MAX)
        return Returned(None)

    world = World(sandbox=ScriptedSandbox(play))
    world.source.put(COMMIT, "")
    world.settings = replace(world.settings, activations_max=4, poll_ms=60_000)
    world.worker = world.another("w1")
    flood = [world.start(repository=FLOOD) for _ in range(8)]
    with working(world):
        until(lambda: len(inside) == world.settings.activations_each == 3)
        others = [world.start(repository=RepositoryId(f"repo_{n}")) for n in range(5)]
        until(lambda: all(world.state(each).terminal for each in others))
        assert inside.count(FLOOD) == 3
        leave.set()
        until(lambda: all(world.state(each).terminal for each in flood))


def test_a_stopping_worker_claims_nothing_more_and_lets_activations_end() -> None:
    entered, leave = threading.Event(), threading.Event()

    def play(activation: Activation, host: ActivationHost) -> Outcome:
        entered.set()
        assert leave.wait(SECONDS_MAX)
        return Returned("whole")

    world = World(sandbox=ScriptedSandbox(play))
    world.source.put(COMMIT, "")
    world.settings = replace(world.settings, activations_max=1)
    world.worker = world.another("w1")
    first = world.start()
    with working(world):
        assert entered.wait(SECONDS_MAX)
        second = world.start()
        threading.Timer(0.05, leave.set).start()
    assert world.run(first).output == "whole"
    assert world.state(second) is RunState.QUEUED


def test_a_stopping_worker_hands_back_a_command_that_takes_too_long() -> None:
    entered = threading.Event()

    class Stubborn(DummyRunner):
        def run(
            self,
            spec: CommandSpec,
            *,
            output: Callable[[str, bytes], None],
            stop: Callable[[], bool],
        ) -> CommandResult:
            entered.set()
            until(stop)
            return super().run(spec, output=output, stop=stop)

    world = World(sandbox=ScriptedSandbox(lambda a, h: _suspend(h)), runner=Stubborn())
    world.source.put(COMMIT, "")
    world.settings = replace(world.settings, drain_ms=0)
    world.worker = world.another("w1")
    run_id = world.start()
    with working(world):
        assert entered.wait(SECONDS_MAX)
    kinds = world.kinds(run_id)
    assert kinds[-1] == "attempt_failed"
    assert world.store.operations.claim(WorkerId("w2"), limit=1, lease_ms=1_000)


def _suspend(host: ActivationHost) -> Outcome:
    host.next([start_sh("slow")])
    raise AssertionError("the host goes on after it suspended the guest")


def test_a_worker_that_stops_lets_go_of_every_lease() -> None:
    world = World()
    run_id = world.start(pipeline("return 1"))
    assert world.worker.activations.claim(1)
    with working(world):
        pass
    assert world.run(run_id).worker is None


def test_slots_count_what_is_free_and_ring_when_one_falls_free() -> None:
    rung, leave = threading.Event(), threading.Event()
    slots: Slots[str] = Slots(2, "test", rung.set)
    slots.put(lambda item: assert_waited(leave), "a")
    assert slots.free == 1
    leave.set()
    assert rung.wait(SECONDS_MAX)
    assert slots.idle()
    slots.close()


def assert_waited(event: threading.Event) -> None:
    assert event.wait(SECONDS_MAX)


def test_pending_pushes_are_dispatched_by_whichever_worker_looks_first() -> None:
    world = World()
    waiting = [3]
    tools = replace(world.worker._tools, dispatch_pending=lambda: waiting.pop() if waiting else 0)
    worker = type(world.worker)(tools)
    assert worker.run_once() == 3
    assert worker.run_once() == 0


def test_every_claimed_lease_is_renewed_until_the_work_is_done() -> None:
    world = World()
    run_id = world.start(pipeline("return 1"))
    (claim,) = world.worker.activations.claim(1)
    for _ in range(5):
        world.clock.advance(20)
        world.worker.heartbeat.run_once()
    assert world.worker.expiry.run_once() == 0
    world.worker.activations.execute(claim)
    assert world.state(run_id) is RunState.PASSED


def test_while_no_one_commits_housekeeping_looks_in_one_turn_of_five() -> None:
    world = World()
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        return 0

    worker = type(world.worker)(replace(world.worker._tools, dispatch_pending=look))
    for _ in range(11):
        worker.housekeep()
    assert looks == 3
    worker.hear()
    worker.housekeep()
    assert looks == 4


def test_a_worker_that_is_asked_to_drain_ends_by_itself() -> None:
    world = World()
    world.settings = replace(world.settings, lease_ms=30)  # and so a heartbeat each 10 ms
    world.worker = world.another("w1")
    thread = threading.Thread(target=world.worker.run_forever, args=(threading.Event(),))
    thread.start()
    until(lambda: bool(world.store.workers.list()))
    assert world.store.workers.drain(WorkerId("w1"))
    thread.join(SECONDS_MAX)
    assert not thread.is_alive()
    assert world.store.workers.list() == []


def test_a_draining_worker_shows_that_it_is() -> None:
    began, goes_on = threading.Event(), threading.Event()

    def wait(spec: CommandSpec) -> None:
        began.set()
        goes_on.wait(SECONDS_MAX)

    world = World(runner=DummyRunner(before=wait))
    stop = threading.Event()
    thread = threading.Thread(target=world.worker.run_forever, args=(stop,))
    thread.start()
    run_id = world.start(pipeline('return (await step.sh("a", "x")).exit_code'))
    assert began.wait(SECONDS_MAX)
    stop.set()
    until(lambda: [one.draining for one in world.store.workers.list()] == [True])
    world.start(pipeline("return 1"))
    goes_on.set()
    thread.join(SECONDS_MAX)
    assert world.kinds(run_id).count("step_passed") == 1
    assert len(world.runner.ran) == 1


def test_a_known_result_is_taken_while_every_place_is_busy() -> None:
    world = World(runner=DummyRunner())
    world.settings = replace(world.settings, operations_max=1)
    world.worker = world.another("w1")
    cached = pipeline('return (await step.sh("a", "x", cache=True)).from_run')
    world.start(cached)
    world.work()
    busy, goes_on = threading.Event(), threading.Event()

    def wait(spec: CommandSpec) -> None:
        busy.set()
        goes_on.wait(SECONDS_MAX)

    world.runner.before = wait
    with working(world):
        world.start(pipeline('await step.sh("long", "sleep")'), commit="2" * 40)
        assert busy.wait(SECONDS_MAX)
        again = world.start(cached)
        until(lambda: world.state(again) is RunState.PASSED)
        goes_on.set()
    assert world.run(again).output == 1
