"""The worker on a real SQLite file and a real sandbox; only time and commands are fake."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci_platform.config import read_config
from ci_platform.model import RunId, RunState
from ci_platform.ports import Store
from ci_platform.sandbox import SandboxLimits, WasmSandbox
from ci_platform.store import open_store
from ci_platform.testing import DummyRunner, FakeClock, succeeded
from ci_platform.worker import Worker
from tests.unit.worker.world import NEWER, World, pipeline

EVERYTHING = """
print("begin")
a, b = await asyncio.gather(step.do("a", lambda: 1), step.do("b", lambda: 2))
built = await step.sh("build", "make")
await step.sleep("nap", "3 days")
event = await step.wait_for_event("go", type="go")
await step.approval("ship", required=2)
print("end")
return [a, b, built.output_tail, event.payload]
"""
DONE_SECONDS = 20.0  # for threads to do what is due; it takes them milliseconds


@pytest.fixture(scope="module")
def sandbox() -> Iterator[WasmSandbox]:
    wasm = WasmSandbox(SandboxLimits(processes=2), cache=read_config().cache)
    yield wasm
    wasm.close()


@pytest.fixture
def world(sandbox: WasmSandbox, tmp_path: Path) -> Iterator[World]:
    def make_store(clock: FakeClock) -> Store:
        return open_store(f"sqlite:///{tmp_path}/sluice.db", clock=clock, key=b"k" * 32)

    runner = DummyRunner({"sh:build": [succeeded("built", layer="l1")]})
    made = World(sandbox=sandbox, make_store=make_store, runner=runner)
    yield made
    made.store.close()


def until(world: World, run_id: RunId, *states: RunState) -> None:
    """Wait for threads to bring a run there."""
    deadline = time.monotonic() + DONE_SECONDS
    while world.state(run_id) not in states:
        assert time.monotonic() < deadline, f"{world.run(run_id)} {world.kinds(run_id)}"
        time.sleep(0.002)


def test_a_run_with_every_kind_of_step_passes(world: World) -> None:
    run_id = world.start(pipeline(EVERYTHING))
    world.work()
    assert [wait.name for wait in world.run(run_id).waits] == ["nap"]
    world.send(run_id, "go", {"version": 3})
    world.later(3 * 86_400)
    assert [wait.name for wait in world.run(run_id).waits] == ["ship"]
    world.answer(run_id, "ship", "ada")
    world.answer(run_id, "ship", "bob")
    world.work()
    run = world.run(run_id)
    assert (run.state, run.output) == ("passed", [1, 2, "built", {"version": 3}])
    assert world.log(run_id) == ["begin", "end"]
    assert set(world.steps(run_id).values()) == {"passed"}


def test_a_worker_on_threads_is_woken_by_the_bell_and_drains_when_it_stops(world: World) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=world.worker.run_forever, args=(stop,))
    thread.start()
    try:
        waiting = world.start(
            pipeline('return (await step.wait_for_event("go", type="go")).payload')
        )
        short = pipeline('return await step.do("a", lambda: 1)')
        others = [world.start(short, commit=NEWER) for _ in range(20)]
        until(world, waiting, RunState.WAITING)
        world.send(waiting, "go", "woken")
        until(world, waiting, RunState.PASSED)
        for run_id in others:
            until(world, run_id, RunState.PASSED)
    finally:
        stop.set()
        thread.join(DONE_SECONDS)
    assert not thread.is_alive()
    late = world.start(pipeline("return 1"))
    assert world.state(late) is RunState.QUEUED


def test_a_run_survives_a_worker_that_died_in_the_middle(world: World) -> None:
    run_id = world.start(pipeline(EVERYTHING))
    claimed = world.worker.activations.claim(1)  # and dies with it
    assert [claim.run.id for claim in claimed] == [run_id]
    other: Worker = world.another("w2")
    world.work(other)
    assert world.state(run_id) is RunState.RUNNING
    world.clock.advance(31)
    world.work(other)
    assert [wait.name for wait in world.run(run_id).waits] == ["nap"]


def test_a_loop_without_end_fails_its_run_and_the_worker_goes_on(tmp_path: Path) -> None:
    limits = SandboxLimits(processes=1, cpu_seconds=0.5)
    quick = WasmSandbox(limits, cache=read_config().cache)
    try:
        world = World(sandbox=quick)
        bad = world.start(pipeline("while True: pass"))
        good = world.start(pipeline("return 1"), commit=NEWER)
        world.work()
        run = world.run(bad)
        assert (run.state, run.reason) == ("failed", "limit")
        assert world.state(good) is RunState.PASSED
    finally:
        quick.close()
