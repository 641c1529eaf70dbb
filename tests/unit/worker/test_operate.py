"""Commands from claim to result, and all the ways in which they are cut short."""

from __future__ import annotations

import logging

import pytest

from ci_platform.engine.limits import LOST_COMMANDS_MAX
from ci_platform.errors import RunnerUnavailable, StoreUnavailable
from ci_platform.model import EntryKind, RunState, StepKey, WorkerId
from ci_platform.shell import CommandSpec
from ci_platform.testing import DummyRunner, succeeded
from tests.unit.worker.world import COMMIT, REPOSITORY, World, pipeline

TWO = """
await step.sh("build", "make")
return (await step.sh("test", "make test")).output_tail
"""
CAUGHT = """
try:
    await step.sh("test", "pytest", retries={})
except CommandFailed as error:
    return [error.exit_code, str(error)]
"""


def caught(retries: str = "0") -> str:
    return CAUGHT.replace("{}", retries)


def test_commands_run_one_after_the_other_each_on_the_layers_before_it() -> None:
    world = World(
        runner=DummyRunner(
            {
                "sh:build": [succeeded("built\n", layer="l1")],
                "sh:test": [succeeded("3 passed\n", layer="l2")],
            }
        )
    )
    run = world.play(TWO)
    assert (run.state, run.output) == ("passed", "3 passed\n")
    assert [(spec.step, tuple(spec.base), spec.script) for spec in world.runner.ran] == [
        ("sh:build", (), "make"),
        ("sh:test", ("l1",), "make test"),
    ]
    assert world.runner.ran[0].commit == COMMIT
    assert world.log(run.id, "sh:build") == ["built"]


def test_a_waiting_command_shows_its_run_as_running() -> None:
    world = World()
    run_id = world.start(pipeline(TWO))
    world.worker.activations.run_once()
    run = world.run(run_id)
    assert (run.state, [wait.kind for wait in run.waits]) == (RunState.RUNNING, ["operation"])
    assert run.worker is None


def test_commands_wait_while_their_worker_can_start_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(runner=DummyRunner(blocked="the worker's disk has 1 MiB free"))
    run = world.play('return (await step.sh("test", "pytest")).exit_code')
    assert (run.state, world.runner.ran) == (RunState.RUNNING, [])
    world.later(60)
    assert world.run(run.id).output is None
    said = [one.getMessage() for one in caplog.records if "no command is started" in one.message]
    assert said == ["no command is started: the worker's disk has 1 MiB free"]
    assert [one.obstacle for one in world.store.workers.list()] == [world.runner.blocked]
    world.runner.blocked = None
    world.later(60)
    assert world.run(run.id).output == 0


def test_each_command_obeys_the_hosts_that_its_repository_allows_when_it_starts() -> None:
    world = World()
    world.store.networks.put(REPOSITORY, ["pypi.org"])
    world.play(
        """
        async with step.service("db", "run db"):
            await step.sh("first", "make", network=["pypi.org"])
        await step.sleep("later", 60)
        await step.sh("second", "make", network=["pypi.org"])
        """
    )
    world.store.networks.put(REPOSITORY, [])
    world.later(60)
    first, second = world.runner.ran
    assert (first.allowed, second.allowed) == (("pypi.org",), ())
    assert [one["command"]["allowed"] for one in first.services] == [("pypi.org",)]


def test_a_failing_command_raises_in_the_author_s_code() -> None:
    world = World(runner=DummyRunner({"sh:test": [succeeded("boom", exit_code=2)]}))
    run = world.play(caught())
    assert run.output[0] == 2
    assert "exited with code 2" in run.output[1]
    assert world.log(run.id, "sh:test")[1].startswith("exited with code 2 after")


def test_a_retried_command_starts_again_after_its_delay() -> None:
    runner = DummyRunner({"sh:test": [succeeded(exit_code=1), succeeded("ok")]})
    world = World(runner=runner)
    run = world.play('return (await step.sh("test", "pytest", retries=1)).exit_code')
    assert (run.state, [wait.kind for wait in run.waits]) == (RunState.WAITING, ["retry"])
    assert len(runner.ran) == 1
    world.later(10)
    assert world.run(run.id).output == 0
    assert "attempt 2" in world.log(run.id, "sh:test")


def test_a_cancelled_run_stops_its_command_and_the_operation_is_over() -> None:
    stopped: list[bool] = []

    def cancel_meanwhile(spec: CommandSpec) -> None:
        world.cancel(run_id)
        world.clock.advance(1)
        stopped.append(True)

    world = World(runner=DummyRunner(before=cancel_meanwhile))
    run_id = world.start(pipeline(TWO))
    world.work()
    assert stopped == [True]
    assert world.state(run_id) == "cancelled"
    assert world.kinds(run_id)[-1] == "run_cancelled"
    world.later(100)
    assert len(world.runner.ran) == 1
    assert world.store.runs.next_ready_ms() is None


def test_a_command_cancelled_before_it_was_claimed_never_runs() -> None:
    world = World()
    run_id = world.start(pipeline(TWO))
    world.worker.activations.run_once()
    world.cancel(run_id)
    world.work()
    assert world.runner.ran == []


def test_a_command_whose_lease_moved_on_writes_nothing() -> None:
    def stall(spec: CommandSpec) -> None:
        if len(world.runner.ran) == 1:
            world.clock.advance(31)
            other = world.another("w2")
            while other.run_once():
                pass

    world = World(runner=DummyRunner(before=stall))
    run_id = world.start(pipeline('return (await step.sh("test", "pytest")).exit_code'))
    world.work()
    key = StepKey.parse("sh:test")
    assert world.run(run_id).output == 0
    kinds = [e.kind.value for e in world.journal(run_id) if e.key == key]
    assert kinds == ["step_started", "attempt_failed", "attempt_started", "step_passed"]
    assert world.values(run_id, EntryKind.ATTEMPT_FAILED, "error")[0]["type"] == "LostWorker"


def test_a_command_that_loses_every_worker_errors_its_run_in_the_end() -> None:
    world = World()
    run_id = world.start(pipeline('await step.sh("test", "pytest")'))
    world.worker.activations.run_once()
    for number in range(LOST_COMMANDS_MAX):
        dead = WorkerId(f"dead {number}")
        assert len(world.store.operations.claim(dead, limit=1, lease_ms=1_000)) == 1
        world.clock.advance(2)
        world.worker.expiry.run_once()
        world.worker.operations.run_once()  # finds the loss
    world.work()
    run = world.run(run_id)
    assert world.runner.ran == []
    assert (run.state, run.reason) == ("errored", "lost_worker")


def test_a_machine_that_cannot_run_commands_passes_them_on_and_gives_up_in_the_end() -> None:
    runner = DummyRunner({"sh:test": [RunnerUnavailable("no bubblewrap here")]})
    world = World(runner=runner)
    run = world.play('await step.sh("test", "pytest")')
    for number in range(LOST_COMMANDS_MAX - 1):
        world.later(5**number - 1)  # each pause is longer than the one before
        assert len(runner.ran) == number + 1
        world.later(1)
    found = world.run(run.id)
    assert (found.state, found.reason) == ("errored", "lost_worker")
    assert found.error is not None and "no bubblewrap here" in found.error.message
    assert len(runner.ran) == LOST_COMMANDS_MAX


def test_a_draining_worker_hands_its_command_back_and_another_runs_it_again() -> None:
    def drain(spec: CommandSpec) -> None:
        if len(world.runner.ran) == 1:
            world.worker.operations.draining.set()

    world = World(runner=DummyRunner(before=drain))
    run_id = world.start(pipeline('return (await step.sh("test", "pytest")).exit_code'))
    world.worker.activations.run_once()
    world.worker.operations.run_once()
    assert "worker w1 was stopped" in world.log(run_id, "sh:test")
    world.work(world.another("w2"))
    assert world.run(run_id).output == 0
    assert len(world.runner.ran) == 2


def test_a_bug_in_the_runner_costs_an_attempt_and_not_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = DummyRunner({"sh:test": [ZeroDivisionError("a bug"), succeeded()]})
    world = World(runner=runner)
    with caplog.at_level(logging.ERROR):
        run = world.play('return (await step.sh("test", "pytest")).exit_code')
        world.later(1)
    assert world.run(run.id).output == 0
    assert "a bug" in caplog.text


def test_a_store_that_is_away_when_the_command_ends_gets_the_loss_later() -> None:
    world = World()
    append = world.store.runs.append

    def away(asked: object) -> object:
        raise StoreUnavailable

    def cut(spec: CommandSpec) -> None:
        if len(world.runner.ran) == 1:
            world.store.runs.append = away  # type: ignore[assignment, method-assign]

    world.runner.before = cut
    run_id = world.start(pipeline('return (await step.sh("test", "pytest")).exit_code'))
    world.work()
    world.later(1)  # still away
    world.store.runs.append = append  # type: ignore[method-assign]
    world.later(2)
    assert world.run(run_id).output == 0


def test_a_log_s_lines_are_there_before_the_step_has_ended() -> None:
    world = World(runner=DummyRunner({"sh:test": [succeeded("no newline at the end")]}))
    run = world.play('await step.sh("test", "pytest")')
    lines = world.store.logs.read(run.id, "sh:test")
    assert [line.text for line in lines][0] == "no newline at the end"
    assert [(line.number, line.stream) for line in lines] == [(1, "stdout")]


def test_a_command_is_left_to_a_worker_that_has_its_labels() -> None:
    world = World()
    run_id = world.start(pipeline('return (await step.sh("test", "x", labels=["gpu"])).exit_code'))
    world.work()
    assert world.runner.ran == []
    assert world.store.runs.next_ready_ms(["linux"]) is None
    able = world.another("w2", labels=("linux", "gpu"))
    world.work(able)
    assert (len(world.runner.ran), world.run(run_id).output) == (1, 0)


def test_a_known_result_needs_no_labels_and_no_free_place() -> None:
    code = pipeline('return (await step.sh("t", "x", labels=["gpu"], cache=True)).from_run')
    world = World()
    able = world.another("w2", labels=("gpu",))
    first = world.start(code)
    world.work(able)
    world.work(able)
    assert world.run(first).output is None
    second = world.start(code)
    world.work()  # without the label
    assert (world.run(second).output, len(world.runner.ran)) == (1, 1)


def test_a_lost_command_that_must_not_be_done_twice_is_not() -> None:
    code = CAUGHT.replace("retries={}", 'on_lost="fail"')
    world = World()
    run_id = world.start(pipeline(code))
    world.worker.activations.run_once()
    assert world.store.operations.claim(WorkerId("dead"), limit=1, lease_ms=1_000)
    world.clock.advance(2)
    world.work()
    assert world.runner.ran == []
    why = "worker dead was lost during attempt 1"
    assert world.run(run_id).output == [None, f"'test': {why}"]
    assert world.log(run_id, "sh:test") == [why]


def test_a_command_is_killed_at_once_when_its_worker_has_lost_it() -> None:
    """What `stop` raises gets through the runner."""

    def lose(spec: CommandSpec) -> None:
        if len(world.runner.ran) == 1:
            world.clock.advance(31)
            world.another("w2").expiry.run_once()

    world = World(runner=DummyRunner(before=lose))
    run_id = world.start(pipeline('return (await step.sh("test", "pytest")).exit_code'))
    world.worker.activations.run_once()
    world.worker.operations.run_once()
    assert world.log(run_id, "sh:test") == []
    assert world.kinds(run_id)[-1] == "run_suspended"
    world.work(world.another("w3"))
    assert world.log(run_id, "sh:test")[0] == "worker w1 was lost during attempt 1"
    assert world.run(run_id).output == 0


def test_a_command_is_killed_when_its_lease_cannot_have_been_renewed() -> None:
    def away(operation_id: object) -> object:
        raise StoreUnavailable

    def cut(spec: CommandSpec) -> None:
        if len(world.runner.ran) == 1:
            world.store.operations.get = away  # type: ignore[assignment, method-assign]
            world.clock.advance(31)

    world = World(runner=DummyRunner(before=cut))
    get = world.store.operations.get
    run_id = world.start(pipeline('return (await step.sh("test", "pytest")).exit_code'))
    world.worker.activations.run_once()
    world.worker.operations.run_once()
    assert world.kinds(run_id)[-1] == "run_suspended"
    world.store.operations.get = get  # type: ignore[method-assign]
    world.work()
    assert world.run(run_id).output == 0
