"""Activations while others write: people, commands, other workers, and death at any write."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ci_platform.engine.limits import LOST_LEASES_MAX
from ci_platform.envelope import KEY
from ci_platform.errors import SandboxUnavailable, StoreUnavailable
from ci_platform.model import (
    Broke,
    Command,
    Entry,
    EntryKind,
    FinishAttempt,
    Json,
    Mismatch,
    Outcome,
    Returned,
    RunId,
    StartStep,
    StepKey,
    Suspended,
)
from ci_platform.ports.sandbox import Activation, ActivationHost
from ci_platform.testing import FakeClock, InMemoryStore, InProcessSandbox, ScriptedSandbox
from tests.unit.engine.journal import start_do, start_sleep, start_wait
from tests.unit.worker.world import COMMIT, REPOSITORY, World, pipeline

Play = Callable[[Activation, ActivationHost], Outcome]


def scripted(play: Play) -> World:
    world = World(sandbox=ScriptedSandbox(play))
    world.source.put(COMMIT, "")
    return world


def kinds(entries: Sequence[Entry]) -> list[str]:
    return [entry.kind.value for entry in entries]


# --- people write while the code executes ---


def test_an_event_that_arrives_during_an_activation_is_answered_to_the_guest() -> None:
    answers: list[list[str]] = []

    def play(activation: Activation, host: ActivationHost) -> Outcome:
        host.next([start_do("slow")])
        world.send(run_id, "go", 5)
        answers.append(kinds(host.next([FinishAttempt(StepKey.parse("do:slow"), 1, 1)])))
        answers.append(kinds(host.next([start_wait("go", "go")])))
        return Returned(None)

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert answers == [
        ["event_received", "step_passed"],
        ["step_started", "step_passed"],
    ]
    assert world.state(run_id) == "passed"


def test_an_event_that_arrives_just_before_the_suspension_prevents_it() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        if any(entry.kind is EntryKind.RUN_SUSPENDED for entry in activation.entries):
            return Returned("slept")
        host.next([start_do("a")])
        host.next([FinishAttempt(StepKey.parse("do:a"), 1)])
        host.next([start_wait("go", "go"), start_do("b")])
        world.send(run_id, "go")
        answer = host.next([FinishAttempt(StepKey.parse("do:b"), 1)])
        assert kinds(answer) == ["event_received", "step_passed", "step_passed"]
        return Returned("awake")

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert world.run(run_id).output == "awake"


def test_a_cancel_during_an_activation_wins_and_the_worker_writes_nothing_more() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        host.next([start_do("slow")])
        world.cancel(run_id)
        host.next([FinishAttempt(StepKey.parse("do:slow"), 1)])
        raise AssertionError("the sandbox is dropped")

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert world.state(run_id) == "cancelled"
    assert world.kinds(run_id)[-1] == "run_cancelled"


def test_a_pause_during_a_body_keeps_its_result_and_starts_nothing_more() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        slow = StepKey.parse("do:slow")
        if any(entry.kind is EntryKind.RUN_RESUMED for entry in activation.entries):
            ends = [e for e in activation.entries if e.key == slow]
            return Returned(ends[-1].data["value"])
        host.next([start_do("slow")])
        world.pause(run_id)
        assert host.next([FinishAttempt(slow, 1, 7), start_do("next")]) == ()
        return Suspended()

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert world.state(run_id) == "paused"
    assert world.steps(run_id) == {"do:slow": "passed"}
    world.resume(run_id)
    world.work()
    assert world.run(run_id).output == 7


# --- other workers ---


def test_a_worker_whose_lease_went_to_another_can_write_nothing() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        if sandbox.activations[0] is not activation:
            return Returned("second")
        host.next([start_do("slow")])
        world.clock.advance(31)  # the process is stopped, as by SIGSTOP, past its lease
        world.work(world.another("w2"))
        host.next([FinishAttempt(StepKey.parse("do:slow"), 1)])
        raise AssertionError("a lost lease drops the sandbox")

    sandbox = ScriptedSandbox(play)
    world = World(sandbox=sandbox)
    world.source.put(COMMIT, "")
    run_id = world.start()
    world.work()
    assert (world.state(run_id), world.run(run_id).output) == ("passed", "second")
    assert world.kinds(run_id)[-1] == "run_passed"
    assert world.values(run_id, EntryKind.RUN_CLAIMED, "worker") == ["w1", "w2"]


def test_a_heartbeat_keeps_the_lease_of_a_long_body() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        host.next([start_do("slow")])
        for _ in range(10):
            world.clock.advance(10)
            world.worker.heartbeat.run_once()
            assert world.worker.expiry.run_once() == 0
        host.next([FinishAttempt(StepKey.parse("do:slow"), 1)])
        return Returned(None)

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert world.state(run_id) == "passed"


# --- what guests and sandboxes do wrong ---


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (start_sleep("", 1), "no name"),
        (start_do("x", colour=1), "unknown option"),
        (FinishAttempt(StepKey.parse("do:ghost"), 1), "does not run"),
    ],
)
def test_a_hostile_guest_fails_its_own_run_and_no_other(command: Command, said: str) -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        if activation.event["params"] == "good":
            return Returned("fine")
        host.next([start_sleep("nap", 1_000), command])
        return Returned("the journal knows better")

    world = scripted(play)
    bad, good = world.start(), world.start(params="good")
    world.work()
    run = world.run(bad)
    assert run.state == "failed"
    assert run.error is not None and said in run.error.message
    assert world.state(good) == "passed"


def test_a_guest_that_goes_on_after_its_run_was_suspended_is_dropped() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        assert host.next([start_sleep("nap", 60_000)]) == ()
        host.next([start_do("more")])
        raise AssertionError("the sandbox is dropped")

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert world.state(run_id) == "waiting"
    assert world.steps(run_id) == {"sleep:nap": "waiting"}


def test_a_replay_that_differs_holds_the_run_and_says_where() -> None:
    world = scripted(lambda activation, host: Mismatch(4, "do:build", "sh:test"))
    run_id = world.start()
    world.work()
    run = world.run(run_id)
    assert (run.state, run.reason) == ("paused", "nondeterminism")
    assert world.values(run_id, EntryKind.RUN_PAUSED, "detail") == [
        "entry 4: expected do:build, got sh:test"
    ]


def test_a_sandbox_that_breaks_is_replaced_and_its_bodies_are_tried_again() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        if len(sandbox.activations) == 1:
            host.next([start_do("build")])
            return Broke("killed")
        build = [entry for entry in activation.entries if entry.key is not None][-1]
        assert build.kind is EntryKind.ATTEMPT_FAILED
        (started,) = host.next([])
        assert (started.kind, started.attempt) == (EntryKind.ATTEMPT_STARTED, 2)
        host.next([FinishAttempt(StepKey.parse("do:build"), 2, "done")])
        return Returned("done")

    sandbox = ScriptedSandbox(play)
    world = World(sandbox=sandbox)
    world.source.put(COMMIT, "")
    run_id = world.start()
    world.work()
    assert (world.state(run_id), world.run(run_id).output) == ("passed", "done")


def test_a_run_whose_sandboxes_all_break_is_errored() -> None:
    world = scripted(lambda activation, host: Broke("out of memory"))
    run_id = world.start()
    world.work()
    run = world.run(run_id)
    assert (run.state, run.reason) == ("errored", "sandbox")
    assert run.error is not None and "out of memory" in run.error.message


def test_a_machine_without_sandboxes_passes_runs_on_and_they_end_in_the_end() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        raise SandboxUnavailable("no memory for another process")

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert not world.state(run_id).terminal
    for _ in range(LOST_LEASES_MAX + 1):
        world.later(33)
    run = world.run(run_id)
    assert (run.state, run.reason) == ("errored", "lost_worker")
    assert run.error is not None and "no memory for another process" in run.error.message


def test_an_envelope_that_names_another_repository_is_errored_and_audited() -> None:
    world = World()
    world.source.put(COMMIT, pipeline("return 1"))
    run_id = world.start()
    run = world.run(run_id)
    forged = {**run.payload, KEY: {**run.payload[KEY], "repository_id": "repo_other"}}
    assert isinstance(world.store, InMemoryStore)
    world.store.runs._tables.runs[run_id] = replace(run, payload=forged)
    world.work()
    found = world.run(run_id)
    assert (found.state, found.reason) == ("errored", "envelope")
    assert found.error is not None and "repo_other" in found.error.message
    (record,) = world.store.audit.list()
    assert record["subject"] == run_id


def test_a_journal_that_cannot_be_read_ends_its_run_instead_of_being_tried_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    run_id = world.start(pipeline('await step.sleep("nap", 60)'))
    world.work()
    assert isinstance(world.store, InMemoryStore)
    journal = world.store.runs._tables.journals[run_id]
    journal[2] = replace(journal[2], kind=EntryKind.RUN_CREATED)
    world.later(60)
    run = world.run(run_id)
    assert (run.state, run.reason) == ("errored", "journal")
    assert "cannot be read" in caplog.text


def test_a_bug_of_ours_costs_a_run_its_activations_and_the_worker_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        if activation.event["params"] == "good":
            return Returned("fine")
        raise ZeroDivisionError("a bug")

    world = scripted(play)
    bad = world.start()
    with caplog.at_level(logging.ERROR):
        world.work()
        good = world.start(params="good")
        for _ in range(LOST_LEASES_MAX + 1):
            world.later(33)
    assert world.state(good) == "passed"
    assert (world.state(bad), world.run(bad).reason) == ("errored", "lost_worker")
    assert "a bug" in caplog.text


# --- death at any write ---


class Killed(BaseException):
    """The process is gone: nothing after this is executed."""


class DyingStore(InMemoryStore):
    """Dies at the append number `at`, before it is written or after."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.at: int | None = None
        self.after = False
        self.count = 0
        self.lost = False  # the answer of that append, instead of the process
        append = self.runs.append

        def dying(asked: Json) -> Json:
            self.count += 1
            if self.count != self.at:
                return append(asked)
            answer = append(asked) if self.after else None
            if self.lost:
                raise StoreUnavailable("the connection is gone")
            assert answer is None or answer.applied
            raise Killed

        self.runs.append = dying  # type: ignore[assignment, method-assign]


SCENARIO = """
executed = []
import sys
a = await step.do("a", lambda: event.params)
b, c = await asyncio.gather(step.sh("b", "true"), step.do("c", lambda: a + 1))
await step.sleep("nap", 60)
d = await step.wait_for_event("d", type="go")
await step.approval("ship")
return [a, b.exit_code, c, d.payload]
"""


def live(world: World, run_id: RunId) -> None:
    """Play the scenario to its end, whatever happens to workers and people on the way."""
    for turn in range(60):
        with contextlib.suppress(Killed, StoreUnavailable):
            world.work(world.another(f"w{turn}"))
            act(world, run_id)
        if world.state(run_id).terminal:
            return
    raise AssertionError(f"not done: {world.kinds(run_id)}")


def act(world: World, run_id: RunId) -> None:
    """What people do next; else time passes."""
    run = world.run(run_id)
    waits = {wait.kind for wait in run.waits if run.state == "waiting"}
    if "wait" in waits:
        world.send(run.id, "go", "sent")
    elif "approval" in waits:
        world.answer(run.id, "ship", "ada")
    else:
        world.clock.advance(61)


def outcome_of(world: World, run_id: RunId) -> tuple[Json, Json, dict[str, int]]:
    run = world.run(run_id)
    ends = [str(e.key) for e in world.journal(run.id) if e.kind is EntryKind.STEP_PASSED]
    return run.state, run.output, {key: ends.count(key) for key in ends}


def world_that_dies(at: int | None, *, after: bool, lost: bool) -> tuple[World, DyingStore]:
    world = World(make_store=DyingStore)
    assert isinstance(world.store, DyingStore)
    world.store.at, world.store.after, world.store.lost = at, after, lost
    return world, world.store


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
@pytest.mark.parametrize("lost", [False, True], ids=["killed", "answer lost"])
def test_a_run_ends_the_same_wherever_its_worker_dies(after: bool, lost: bool) -> None:
    world, store = world_that_dies(None, after=False, lost=False)
    run_id = world.start(pipeline(SCENARIO), params=1)
    live(world, run_id)
    expected = outcome_of(world, run_id)
    assert expected[0] == "passed"
    assert set(expected[2].values()) == {1}
    for at in range(1, store.count + 1):
        world, _ = world_that_dies(at, after=after, lost=lost)
        run_id = world.start(pipeline(SCENARIO), params=1)
        live(world, run_id)
        assert outcome_of(world, run_id) == expected, f"append {at}"


def test_the_suite_s_scenario_also_passes_when_the_sandbox_is_dropped_at_every_await() -> None:
    world, store = world_that_dies(None, after=False, lost=False)
    world.settings = replace(world.settings, always_hibernate=True)
    run_id = world.start(pipeline(SCENARIO), params=1)
    live(world, run_id)
    state, output, _ = outcome_of(world, run_id)
    assert (state, output) == ("passed", [1, 0, 2, "sent"])
    assert world.kinds(run_id).count("run_claimed") > 5
    assert world.run(run_id).repository_id == REPOSITORY


def test_the_in_process_sandbox_describes_what_a_file_declares() -> None:
    world = World()
    world.source.put(COMMIT, pipeline("return 1", head="x = 1"))
    described = InProcessSandbox().describe(world.source.load(REPOSITORY, COMMIT))
    assert [each.name for each in described.pipelines] == ["CI"]
    world.source.put(COMMIT, "1/0")
    broken = InProcessSandbox().describe(world.source.load(REPOSITORY, COMMIT))
    assert broken.error is not None and broken.error.type == "ZeroDivisionError"
    assert StartStep is type(start_do("x"))


def test_a_guest_cannot_open_logs_of_steps_that_are_not_its_own() -> None:
    def play(activation: Activation, host: ActivationHost) -> Outcome:
        host.next([start_do("build"), start_sleep("nap", 60_000)])
        for step in ("do:build", "sleep:nap", "do:ghost", "sh:deploy", "$run", "", "x" * 600):
            host.log(step, "stdout", f"{step[:9]}\n")
        host.next([FinishAttempt(StepKey.parse("do:build"), 1)])
        return Returned(None)

    world = scripted(play)
    run_id = world.start()
    world.work()
    assert world.store.logs.steps(run_id) == {"$run": 6, "do:build": 1}


def test_a_worker_that_is_behind_writes_nothing_to_another_run_of_the_same_id() -> None:
    """Its run has ended and is deleted, and a new one has got the id, the same fencing number, and
    a journal of the same length."""

    def play(activation: Activation, host: ActivationHost) -> Outcome:
        host.next([start_do("slow")])
        if len(sandbox.activations) == 1:
            world.cancel(run_id)
            world.store.runs.delete(run_id)
            world.start(run_id=run_id)
            with contextlib.suppress(Killed):
                world.work(world.another("w2"))
            host.next([FinishAttempt(StepKey.parse("do:slow"), 1, "of the first")])
            raise AssertionError("its run is gone")
        raise Killed  # here the second one is, and holds its lease

    sandbox = ScriptedSandbox(play)
    world = World(sandbox=sandbox)
    world.source.put(COMMIT, "")
    run_id = world.start()
    world.work()
    assert len(sandbox.activations) == 2
    assert world.kinds(run_id) == ["run_created", "run_claimed", "step_started"]
