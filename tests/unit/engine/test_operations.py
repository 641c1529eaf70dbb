"""Commands: how they begin, what their ends write, and who pays for a lost worker."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from ci_platform.effects import CloseOperation, OpenOperation
from ci_platform.engine import (
    Decision,
    RunView,
    command_finished,
    command_lost,
    command_started,
    pause,
    resume,
)
from ci_platform.engine.limits import LOST_COMMANDS_MAX
from ci_platform.engine.operations import Collision
from ci_platform.model import (
    AbandonStep,
    Json,
    Operation,
    OperationState,
    RunState,
    StepKey,
    StepKind,
    StepState,
    WorkerId,
)
from ci_platform.shell import CommandResult
from tests.unit.engine.journal import LIMITS, NO_COLLISION, RUN, Journal, row, start_sh

TEST = StepKey(StepKind.SH, "test")
RETRY = {"limit": 1, "delay_ms": 5_000, "backoff": "constant"}
OK = CommandResult(
    exit_code=0,
    ended=None,
    detail="",
    outputs={"version": "1"},
    output_tail="fine\n",
    layer="l1",
    duration_ms=1_200,
)
FAILED = replace(OK, exit_code=2, layer=None)
KILLED = replace(FAILED, exit_code=None, ended="memory", detail="it used more than 4 GiB")
_fences = count(1)


def opened(journal: Journal) -> Operation:
    """The operation that was queued last, as a worker claims it."""
    effect = [each for each in journal.effects if isinstance(each, OpenOperation)][-1]
    return Operation(
        id=effect.id,
        run_id=journal.run.id,
        repository_id=journal.run.repository_id,
        key=effect.key,
        attempt=effect.attempt,
        spec=effect.spec,
        state=OperationState.RUNNING,
        fence=next(_fences),
        worker=WorkerId("w"),
        lease_until_ms=0,
        ready_ms=effect.ready_ms,
        stop=False,
    )


def begun(**config: Json) -> tuple[Journal, Operation]:
    journal = Journal().claim()
    journal.ask(start_sh("test", **config))
    journal.suspend()
    return journal, opened(journal)


def finish(
    journal: Journal,
    operation: Operation,
    result: CommandResult,
    *,
    collision: Collision = NO_COLLISION,
) -> None:
    def decide(view: RunView, now_ms: int) -> Decision:
        decision = command_finished(
            view, operation, result, now_ms, limits=LIMITS, collision=collision
        )
        assert decision is not None
        return decision

    journal.decide(decide)


def ended_late(view: RunView, operation: Operation) -> Decision | None:
    return command_finished(view, operation, OK, 0, limits=LIMITS, collision=NO_COLLISION)


def start(journal: Journal, operation: Operation) -> bool:
    view = journal.view
    decision = command_started(view, operation, journal.now_ms)
    if decision:
        journal.decide(lambda fresh, now: command_started(fresh, operation, now) or decision)
    return decision is not None


def lose(journal: Journal, operation: Operation) -> None:
    def decide(view: RunView, now_ms: int) -> Decision:
        decision = command_lost(view, operation, "gone", now_ms)
        assert decision is not None
        return decision

    journal.decide(decide)


def test_a_suspended_run_whose_command_executes_is_shown_as_running() -> None:
    journal, _ = begun()
    assert (journal.state, journal.ready_ms) == (RunState.RUNNING, None)
    assert [(wait.kind, wait.name) for wait in row(journal).waits] == [("operation", "test")]


def test_a_command_that_succeeds_wakes_its_run_and_keeps_its_layer() -> None:
    journal, operation = begun()
    journal.now_ms += 500
    assert start(journal, operation)
    finish(journal, operation, OK)
    assert journal.view.steps[TEST].value == {
        "exit_code": 0,
        "outputs": {"version": "1"},
        "output_tail": "fine\n",
        "layer": "l1",
        "duration_ms": 1_200,
    }
    assert journal.view.layers == ["l1"]
    assert (journal.state, journal.ready_ms) == (RunState.QUEUED, 1_500)
    assert CloseOperation(operation.id, operation.fence) in journal.effects


def beside() -> tuple[Journal, Operation, Operation]:
    """Two commands that started over the same files."""
    journal = Journal().claim()
    journal.ask(start_sh("unit"))
    first = opened(journal)
    journal.ask(start_sh("lint"))
    return journal, first, opened(journal)


def test_a_file_that_two_parallel_steps_changed_fails_the_later_and_names_both() -> None:
    journal, first, second = beside()
    finish(journal, first, OK)
    collisions = {("l2", "l1"): "report.txt"}
    finish(
        journal,
        second,
        replace(OK, layer="l2"),
        collision=lambda layer, other: collisions.get((layer, other)),
    )
    lint = journal.view.steps[StepKey(StepKind.SH, "lint")]
    assert lint.state is StepState.FAILED
    assert lint.error is not None
    assert lint.error["type"] == "CommandFailed"
    assert "'lint' and 'unit' ran at the same time" in lint.error["message"]
    assert "both changed report.txt" in lint.error["message"]
    assert journal.view.layers == ["l1"]


def test_layers_that_do_not_collide_join_in_journal_order() -> None:
    journal, first, second = beside()
    finish(journal, second, replace(OK, layer="l2"))
    finish(journal, first, OK)
    assert journal.view.layers == ["l2", "l1"]


def test_a_layer_is_compared_only_with_those_of_steps_beside_it() -> None:
    journal, operation = begun()
    finish(journal, operation, OK)
    journal.claim().ask(start_sh("after"))

    def never(layer: str, other: str) -> str | None:
        raise AssertionError("the step before was its base")

    finish(journal, opened(journal), replace(OK, layer="l2"), collision=never)
    assert journal.view.layers == ["l1", "l2"]


def test_a_command_s_spec_says_whether_its_run_is_trusted() -> None:
    assert begun()[1].spec["trusted"] is True
    untrusted = Journal(replace(RUN, trusted=False)).claim()
    untrusted.ask(start_sh("test"))
    assert opened(untrusted).spec["trusted"] is False


def test_commands_work_on_the_layers_below_them_in_journal_order() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("a"), start_sh("b"))
    first, second = (each for each in journal.effects if isinstance(each, OpenOperation))
    assert first.spec["base"] == second.spec["base"] == ()
    operation = opened(journal)
    finish(journal, operation, replace(OK, layer="lb"))
    finish(journal, replace(operation, key=first.key, id=first.id), replace(OK, layer="la"))
    journal.ask(start_sh("c"))
    assert opened(journal).spec["base"] == ("lb", "la")


def test_a_command_that_changed_nothing_adds_no_layer() -> None:
    journal, operation = begun()
    finish(journal, operation, replace(OK, layer=None))
    assert journal.view.layers == []


def test_a_command_that_fails_fails_its_step_with_what_it_said_last() -> None:
    journal, operation = begun()
    finish(journal, operation, FAILED)
    step = journal.view.steps[TEST]
    assert step.state is StepState.FAILED
    assert step.error == {
        "type": "CommandFailed",
        "message": "'test' exited with code 2",
        "traceback": "",
        "data": {"exit_code": 2, "output_tail": "fine\n", "ended": None},
    }


def test_a_command_ended_by_a_limit_names_it_even_if_failure_is_allowed() -> None:
    journal, operation = begun(allow_failure=True)
    finish(journal, operation, KILLED)
    step = journal.view.steps[TEST]
    assert step.state is StepState.FAILED
    assert (step.error or {})["message"] == "'test': it used more than 4 GiB"
    assert (step.error or {})["data"]["ended"] == "memory"


def test_an_allowed_failure_is_a_result() -> None:
    journal, operation = begun(allow_failure=True)
    finish(journal, operation, FAILED)
    assert journal.view.steps[TEST].state is StepState.PASSED
    assert journal.view.steps[TEST].value["exit_code"] == 2


def test_a_retry_is_queued_for_its_time_and_journaled_when_it_begins() -> None:
    journal, operation = begun(retries=RETRY)
    finish(journal, operation, FAILED)
    again = opened(journal)
    assert (again.attempt, again.ready_ms, again.id != operation.id) == (2, 6_000, True)
    assert again.spec["env"]["CI_STEP_ATTEMPT"] == "2"
    assert (journal.state, journal.ready_ms) == (RunState.WAITING, None)
    assert start(journal, again)
    assert journal.view.steps[TEST].attempt == 2
    assert journal.state is RunState.RUNNING
    finish(journal, again, FAILED)
    assert journal.kinds_of(TEST) == [
        "step_started",
        "attempt_failed",
        "attempt_started",
        "step_failed",
    ]


def test_a_retry_works_on_the_same_layers_as_the_first_attempt() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("test", retries=RETRY))
    operation = opened(journal)
    journal.ask(start_sh("other"))
    finish(journal, opened(journal), replace(OK, layer="other"))
    finish(journal, operation, FAILED)
    assert opened(journal).spec["base"] == ()


def test_nothing_is_written_for_a_command_that_nobody_waits_for() -> None:
    journal, operation = begun()
    journal.claim()
    journal.ask(AbandonStep(TEST))
    view = journal.view
    assert command_started(view, operation, 0) is None
    assert ended_late(view, operation) is None
    assert command_lost(view, operation, "gone", 0) is None


def test_an_old_attempt_cannot_end_a_newer_one() -> None:
    journal, operation = begun(retries=RETRY)
    finish(journal, operation, FAILED)
    start(journal, opened(journal))
    assert ended_late(journal.view, operation) is None


def test_a_lost_worker_costs_a_command_an_attempt_but_not_one_of_its_retries() -> None:
    journal, operation = begun()  # no retries
    lose(journal, operation)
    again = opened(journal)
    assert (again.attempt, again.ready_ms) == (2, journal.now_ms)
    assert start(journal, again)
    finish(journal, again, OK)
    assert journal.view.steps[TEST].state is StepState.PASSED


def test_a_lost_command_that_must_not_be_done_twice_has_failed() -> None:
    journal, operation = begun(on_lost="fail")
    lose(journal, operation)
    step = journal.view.steps[TEST]
    assert step.state is StepState.FAILED
    error = step.error or {}
    assert (error["type"], error["message"]) == ("CommandFailed", "'test': gone")
    assert error["data"]["ended"] == "lost_worker"


def test_its_author_s_own_retries_do_such_a_command_again() -> None:
    journal, operation = begun(on_lost="fail", retries=RETRY)
    lose(journal, operation)
    again = opened(journal)
    assert (again.attempt, again.ready_ms) == (2, journal.now_ms + 5_000)
    assert start(journal, again)
    lose(journal, again)
    assert journal.view.steps[TEST].state is StepState.FAILED


def test_a_command_that_loses_every_worker_fails_in_the_end() -> None:
    journal, operation = begun()
    for _ in range(LOST_COMMANDS_MAX):
        lose(journal, operation)
        operation = opened(journal)
        start(journal, operation)
    step = journal.view.steps[TEST]
    assert step.state is StepState.FAILED
    assert (step.error or {})["type"] == "LostWorker"


def test_oversize_outputs_fail_the_step() -> None:
    journal, operation = begun()
    finish(journal, operation, replace(OK, outputs={"x": "y" * LIMITS.value_bytes}))
    step = journal.view.steps[TEST]
    assert step.state is StepState.FAILED
    assert "value_bytes" in (step.error or {})["message"]


def test_a_pause_lets_a_running_command_end_and_then_takes_hold() -> None:
    journal, operation = begun()
    journal.decide(lambda view, now: pause(view, "ada", now))
    assert (journal.state, row(journal).pause_requested) == (RunState.RUNNING, True)
    assert journal.ready_ms is None
    finish(journal, operation, OK)
    assert journal.state is RunState.PAUSED
    assert not row(journal).pause_requested


def test_a_pause_takes_back_a_retry_and_a_resume_queues_it_for_the_time_that_was_left() -> None:
    journal, operation = begun(retries=RETRY)
    finish(journal, operation, FAILED)  # due at 6,000
    retry = opened(journal)
    journal.now_ms = 2_000
    journal.decide(lambda view, now: pause(view, "ada", now))
    assert journal.state is RunState.PAUSED
    assert command_started(journal.view, retry, journal.now_ms) is None
    journal.now_ms = 100_000
    journal.decide(lambda view, now: resume(view, "ada", now))
    again = opened(journal)
    assert (again.attempt, again.ready_ms, again.id != retry.id) == (2, 104_000, True)
    assert start(journal, again)


def test_a_failed_command_of_a_pausing_run_is_tried_again_after_the_resume() -> None:
    journal, operation = begun(retries=RETRY)
    journal.decide(lambda view, now: pause(view, "ada", now))
    finish(journal, operation, FAILED)
    assert opened(journal).attempt == 1  # nothing new is queued
    assert journal.state is RunState.PAUSED
    journal.decide(lambda view, now: resume(view, "ada", now))
    assert opened(journal).attempt == 2
