"""Retention, sweeps and upkeep, driven by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ci_platform.errors import StoreUnavailable
from ci_platform.model import Json, RepositoryId, RunId, RunState, WorkerId
from ci_platform.ports import RunFilter
from ci_platform.testing import DummyRunner, FakeSource, succeeded
from ci_platform.worker import Tools, Worker
from ci_platform.worker.forget import Forget
from ci_platform.worker.prune import Prune
from ci_platform.worker.seal import PERIOD_MS, LogSeal
from ci_platform.worker.sweep import LayerSweep
from ci_platform.worker.upkeep import GitUpkeep
from tests.unit.worker.world import REPOSITORY, World, pipeline

DAY = 86_400
BUILD = pipeline('return (await step.sh("build", "make")).layer')


@dataclass
class KeepingSource(FakeSource):
    released: list[str] = field(default_factory=list)

    def release(self, repository_id: RepositoryId, commit: str) -> None:
        self.released.append(commit)


@dataclass
class StoredLayers:
    """Digest -> when it was written."""

    layers: dict[str, int]

    def stored(self, *, before_ms: int) -> Iterator[Sequence[str]]:
        yield [digest for digest, at_ms in self.layers.items() if at_ms < before_ms]

    def remove(self, digests: Sequence[str], *, before_ms: int) -> int:
        old = [digest for digest in digests if self.layers[digest] < before_ms]
        for digest in old:
            del self.layers[digest]
        return len(old)


def tools(world: World, name: str = "w1", **more: Json) -> Tools:
    base = Tools(
        id=WorkerId(name),
        store=world.store,
        sandbox=world.sandbox,
        runner=world.runner,
        source=world.source,
        clock=world.clock,
        settings=replace(world.settings, kept_runs=1),
    )
    return replace(base, **more)


def test_runs_past_their_retention_go_and_the_newest_of_the_pipeline_stays() -> None:
    world = World(source=KeepingSource())
    old = [world.start(BUILD, commit=str(n) * 40) for n in (1, 2, 3)]
    world.work()
    world.later(31 * DAY)
    assert Prune(tools(world)).run_once() == 2
    assert left(world) == [old[2]]
    assert isinstance(world.source, KeepingSource)
    assert sorted(world.source.released) == ["1" * 40, "2" * 40]


def test_a_commit_is_kept_as_long_as_a_run_stands_at_it() -> None:
    world = World(source=KeepingSource())
    for _ in range(3):
        world.play("return 1")
    world.later(31 * DAY)
    assert Prune(tools(world)).run_once() == 2
    assert isinstance(world.source, KeepingSource)
    assert world.source.released == []


def test_a_run_that_waits_is_never_pruned() -> None:
    world = World()
    waiting = world.start(pipeline('await step.wait_for_event("x", type="x", timeout="300 days")'))
    world.work()
    for _ in range(2):
        world.play("return 1")
    world.later(31 * DAY)
    assert Prune(tools(world)).run_once() == 1
    assert world.state(waiting) is RunState.WAITING


def test_only_one_worker_prunes_in_a_period_and_every_one_may() -> None:
    world = World()
    for _ in range(3):
        world.play("return 1")
    world.later(31 * DAY)
    first, second = Prune(tools(world, "w1")), Prune(tools(world, "w2"))
    assert (first.run_once(), second.run_once()) == (2, 0)
    world.clock.advance(60)
    assert second.run_once() == 0


def test_layers_that_no_run_refers_to_are_swept_once_they_are_old() -> None:
    used, unused, young = "a" * 64, "b" * 64, "c" * 64
    world = World(runner=DummyRunner({"sh:build": [succeeded(layer=used)]}))
    world.start(BUILD)
    world.work()
    start_ms = world.clock.now_ms()
    world.clock.advance(2 * DAY)
    layers = StoredLayers({used: start_ms, unused: start_ms, young: world.clock.now_ms()})
    assert LayerSweep(tools(world, layers=layers)).run_once() == 1
    assert set(layers.layers) == {used, young}


def test_a_layer_goes_after_the_last_run_that_named_it() -> None:
    world = World(runner=DummyRunner({"sh:build": [succeeded(layer="a" * 64)]}))
    world.start(BUILD)
    world.work()
    for _ in range(2):
        world.play("return 1")
    layers = StoredLayers({"a" * 64: world.clock.now_ms()})
    worker = tools(world, layers=layers)
    world.later(31 * DAY)
    assert Prune(worker).run_once() == 2
    assert LayerSweep(worker).run_once() == 1
    assert layers.layers == {}


def test_links_and_dead_workers_are_forgotten() -> None:
    world = World()
    world.store.identity.put_link("digest", "setup", world.clock.now_ms() + 1)
    world.worker.heartbeat.run_once()
    world.clock.advance(2 * DAY)
    assert Forget(tools(world)).run_once() == 2
    assert world.store.workers.list() == []


def test_the_git_store_is_kept_up_in_turns() -> None:
    world = World()
    calls: list[str] = []

    def maintain(name: str) -> int:
        calls.append(name)
        return 0

    duties = [
        GitUpkeep(tools(world, name, maintain_git=partial(maintain, name))) for name in ("w1", "w2")
    ]
    for duty in duties:
        duty.run_once()
    assert calls == ["w1"]
    world.clock.advance(3600)
    duties[1].run_once()
    assert calls == ["w1", "w2"]


def test_a_worker_does_every_slow_duty_at_its_turn() -> None:
    world = World()
    worker = Worker(tools(world, maintain_git=lambda: 1))
    assert worker.tidy() == 1
    assert worker.tidy() == 0


def left(world: World) -> list[RunId]:
    which = RunFilter(repository_ids=[REPOSITORY])
    return [run.id for run in world.store.runs.list(which).runs]


def test_logs_left_as_rows_are_sealed_later_and_one_that_cannot_be_holds_up_no_other() -> None:
    world = World()
    sealed: list[str] = []

    def seal(run_id: RunId, step: str) -> bool:
        if step == "sh:away":
            raise StoreUnavailable
        sealed.append(step)
        return True

    logs = world.store.logs
    logs.unsealed = lambda *, limit=100: [(RunId("r"), "sh:away"), (RunId("r"), "sh:b")]  # type: ignore[method-assign]
    logs.seal = seal  # type: ignore[method-assign]
    duty = LogSeal(tools(world))
    assert (duty.run_once(), sealed) == (1, ["sh:b"])
    assert duty.run_once() == 0  # not its turn
    world.clock.advance(PERIOD_MS / 1000)
    assert duty.run_once() == 1
