"""What a guest may ask for, and what becomes of it. A guest is hostile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.effects import OpenApproval, OpenOperation, StopOperations
from ci_platform.engine import accept, refused
from ci_platform.engine.limits import COMMANDS_MAX, DURATION_MS_MAX, Limits
from ci_platform.errors import LimitExceeded, PipelineError
from ci_platform.model import (
    AbandonStep,
    Command,
    EntryKind,
    ErrorInfo,
    FinishAttempt,
    Json,
    NoteDivergence,
    RunState,
    StartStep,
    StepKey,
    StepKind,
    StepState,
)
from tests.unit.engine.journal import (
    COMMIT,
    DO_CONFIG,
    LIMITS,
    Journal,
    do,
    passed,
    run_with,
    start_approval,
    start_do,
    start_sh,
    start_sleep,
    start_wait,
)

FAILURE = ErrorInfo("OSError", "flaky", "Traceback …")


def refuse(journal: Journal, *commands: Command, limits: Limits = LIMITS) -> str:
    with pytest.raises(PipelineError) as caught:
        accept(journal.view, commands, journal.now_ms, limits=limits)
    return caught.value.detail


def test_a_body_is_journaled_before_it_executes() -> None:
    journal = Journal().claim()
    (entry,) = journal.ask(start_do("build"))
    assert (entry.kind, entry.attempt) == (EntryKind.STEP_STARTED, 1)
    assert entry.data["config"] == DO_CONFIG


def test_a_result_of_none_is_a_result() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    (entry,) = journal.ask(passed("build", None))
    assert (entry.kind, entry.data) == (EntryKind.STEP_PASSED, {"value": None})


def test_a_retryable_failure_is_tried_again_until_the_attempts_are_used_up() -> None:
    journal = Journal().claim()
    journal.ask(start_do("flaky", retries={"limit": 1, "delay_ms": 0, "backoff": "constant"}))
    entries = journal.ask(FinishAttempt(do("flaky"), 1, error=FAILURE))
    assert [entry.kind for entry in entries] == [
        EntryKind.ATTEMPT_FAILED,
        EntryKind.ATTEMPT_STARTED,  # no delay: at once
    ]
    (entry,) = journal.ask(FinishAttempt(do("flaky"), 2, error=FAILURE))
    assert entry.kind is EntryKind.STEP_FAILED
    assert entry.data["error"]["type"] == "OSError"


def test_a_failure_that_is_not_retryable_ends_the_step_at_once() -> None:
    journal = Journal().claim()
    journal.ask(start_do("refused"))
    (entry,) = journal.ask(FinishAttempt(do("refused"), 1, error=FAILURE, retryable=False))
    assert entry.kind is EntryKind.STEP_FAILED


def test_a_command_is_queued_in_the_same_append_as_its_step() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("test", script="pytest", env={"A": "1"}, timeout_ms=5_000))
    (operation,) = journal.effects
    assert isinstance(operation, OpenOperation)
    assert operation.ready_ms == journal.now_ms
    assert operation.spec["script"] == "pytest"
    assert operation.spec["commit"] == COMMIT
    assert operation.spec["env"]["A"] == "1"
    assert operation.spec["env"]["CI_COMMIT_BRANCH"] == "main"
    assert "CI_COMMIT_TAG" not in operation.spec["env"]


def test_an_event_that_came_before_its_wait_is_taken_at_once() -> None:
    journal = Journal()
    journal.add(EntryKind.EVENT_RECEIVED, {"type": "go", "payload": 5, "actor": "ada"})
    journal.claim()
    started, ended = journal.ask(start_wait("ready", "go"))
    assert ended.kind is EntryKind.STEP_PASSED
    assert ended.data["event"] == 2
    assert ended.data["value"] == {
        "payload": 5,
        "timestamp": "1970-01-01T00:00:01.000Z",
        "type": "go",
    }


def test_waits_take_events_of_their_type_first_in_first_out_and_each_event_once() -> None:
    journal = Journal()
    for type, payload in (("go", 1), ("other", 2), ("go", 3)):
        journal.add(EntryKind.EVENT_RECEIVED, {"type": type, "payload": payload, "actor": ""})
    journal.claim()
    journal.ask(*[start_wait(name, "go") for name in ("a", "b", "c")])
    values = [journal.view.steps[StepKey(StepKind.WAIT, name)].value for name in "abc"]
    assert [value and value["payload"] for value in values] == [1, 3, None]
    assert journal.view.events_pending == 1


def test_a_step_that_its_code_gave_up_is_cancelled_and_its_command_stopped() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("slow"))
    key = StepKey(StepKind.SH, "slow")
    journal.ask(AbandonStep(key))
    assert journal.view.steps[key].state is StepState.CANCELLED
    assert StopOperations(key) in journal.effects
    assert journal.ask(AbandonStep(key)) == []


def test_a_gate_opens_in_the_same_append_as_its_step() -> None:
    journal = Journal().claim()
    journal.ask(start_approval("ship", required=2, timeout_ms=1_000))
    (gate,) = journal.effects
    assert isinstance(gate, OpenApproval)
    assert (gate.spec["required"], gate.expires_ms) == (2, journal.now_ms + 1_000)


def test_untrusted_code_gets_no_secrets_and_no_network() -> None:
    for asked in ({"secrets": ["KEY"]}, {"network": ["example.org"]}):
        journal = Journal(run=run_with(trusted=False)).claim()
        journal.ask(start_sh("deploy", **asked))
        step = journal.view.steps[StepKey(StepKind.SH, "deploy")]
        assert step.state is StepState.FAILED
        assert "untrusted" in (step.error or {})["message"]
        assert not journal.effects


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (passed("ghost"), "does not run"),
        (StartStep(do(""), DO_CONFIG), "no name"),
        (StartStep(do("x" * 257), DO_CONFIG), "the limit is 256"),
        (StartStep(do("a\nb"), DO_CONFIG), "cannot be printed"),
        (StartStep(do("\ud800"), DO_CONFIG), "cannot be printed"),
        (StartStep(do("$run"), DO_CONFIG), "begins with"),
        (StartStep(do("x", 0), DO_CONFIG), "occurrence"),
        (StartStep(do("x", True), DO_CONFIG), "occurrence"),
        (start_do("x", colour="red"), "unknown option 'colour'"),
        (start_do("x", timeout_ms="soon"), "timeout_ms of step 'x'"),
        (start_do("x", timeout_ms=True), "timeout_ms of step 'x'"),
        (start_do("x", retries={"limit": 1}), "retries of step 'x'"),
        (
            start_do("x", retries={"limit": -1, "delay_ms": 0, "backoff": "linear"}),
            "the limit in retries",
        ),
        (
            start_do("x", retries={"limit": 10**30, "delay_ms": 0, "backoff": "linear"}),
            "the limit in retries",
        ),
        (start_sh("x", script=["rm"]), "must be text"),
        (start_sh("x", script="a\0b"), "NUL"),
        (start_sh("x", shell="fish"), "must be one of"),
        (start_sh("x", env={"A=B": "1"}), "impossible name"),
        (start_sh("x", env={"A": 1}), "must be text"),
        (StartStep(StepKey(StepKind.SH, "x"), {}), "lacks the option 'script'"),
        (start_sleep("x", -1), "duration_ms of step 'x'"),
        (start_sleep("x", DURATION_MS_MAX + 1), "duration_ms of step 'x'"),
        (StartStep(StepKey(StepKind.SLEEP, "x"), {}), "either duration_ms or until_ms"),
        (
            StartStep(StepKey(StepKind.SLEEP, "x"), {"until_ms": 253_402_300_799_000}),
            "more than 365 days",
        ),
        (start_wait("x", "no spaces"), "event type"),
        (start_wait("x", "go", timeout_ms=0), "timeout_ms"),
        (start_approval("x", required=0), "required"),
        (AbandonStep(do("ghost")), "never started"),
        (NoteDivergence(do("x"), "upside down"), "not one of"),
        (StartStep(StepKey(StepKind.RUN, "x"), {"pipeline": "B"}), "nobody here to start"),
    ],
)
def test_a_hostile_command_is_refused_in_a_sentence(command: Command, said: str) -> None:
    assert said in refuse(Journal().claim(), command)


def test_a_step_cannot_start_twice() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    assert "started twice" in refuse(journal, start_do("build"))


@pytest.mark.parametrize("attempt", [0, 2, -1])
def test_only_the_attempt_that_runs_can_end(attempt: int) -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    assert "does not run" in refuse(journal, passed("build", 1, attempt))


def test_an_attempt_cannot_end_twice() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    assert "does not run" in refuse(journal, passed("build"), passed("build"))


def test_a_sleep_cannot_be_finished_by_the_guest() -> None:
    journal = Journal().claim()
    journal.ask(start_sleep("nap", 60_000))
    assert "does not run" in refuse(journal, FinishAttempt(StepKey(StepKind.SLEEP, "nap"), 1))


@pytest.mark.parametrize(
    "value", [float("nan"), object(), "x" * LIMITS.value_bytes, {"deep": [[[object()]]]}]
)
def test_a_result_that_is_not_json_or_too_large_fails_its_step_without_a_retry(
    value: Json,
) -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    (entry,) = journal.ask(passed("build", value))
    assert entry.kind is EntryKind.STEP_FAILED
    assert "'build'" in entry.data["error"]["message"]


def test_a_bottomless_result_fails_its_step() -> None:
    value: list[Json] = []
    for _ in range(200_000):
        value = [value]
    journal = Journal().claim()
    journal.ask(start_do("build"))
    (entry,) = journal.ask(passed("build", value))
    assert entry.kind is EntryKind.STEP_FAILED


def test_one_step_over_the_limit_is_refused_by_name() -> None:
    few = replace(LIMITS, steps_max=2)
    journal = Journal().claim()
    journal.ask(start_do("a"), start_do("b"))
    assert "steps_max" in refuse(journal, start_do("c"), limits=few)


def test_a_flood_of_commands_is_refused() -> None:
    journal = Journal().claim()
    flood = [AbandonStep(do("x"))] * (COMMANDS_MAX + 1)
    assert f"{COMMANDS_MAX:,}" in refuse(journal, *flood)


def test_an_endless_error_text_is_cut_in_the_middle() -> None:
    journal = Journal().claim()
    journal.ask(start_do("build"))
    error = ErrorInfo("E" * 10_000, "x" * 1_000_000, "\ud800")
    (entry,) = journal.ask(FinishAttempt(do("build"), 1, error=error, retryable=False))
    assert len(entry.data["error"]["message"]) < 70_000
    assert len(entry.data["error"]["type"]) == 256
    entry.data["error"]["traceback"].encode()


def test_refusing_ends_this_run_with_the_sentence_and_all_that_is_open_in_it() -> None:
    journal = Journal().claim()
    journal.ask(start_sh("test"), start_approval("ship"))
    error = LimitExceeded("too much", limit="steps_max")
    journal.decide(lambda view, now: refused(view, error, now))
    view = journal.view
    assert (view.state, view.reason) == (RunState.FAILED, "limit")
    assert view.error is not None and view.error.message == "too much"
    assert not view.open


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ("accept", RunState.RUNNING),
        ("hold", RunState.PAUSED),
        ("fail", RunState.FAILED),
    ],
)
def test_divergence_is_noted_and_the_policy_decides_the_rest(policy: str, state: RunState) -> None:
    journal = Journal().claim()
    journal.ask(NoteDivergence(do("new"), "inserted"), start_do("new"), on_divergence=policy)
    assert journal.view.state is state
    assert "diverged" in journal.kinds
    assert (do("new") in journal.view.steps) == (policy == "accept")


def test_the_same_divergence_is_noted_once() -> None:
    journal = Journal().claim()
    journal.ask(NoteDivergence(do("gone"), "missing"))
    assert journal.ask(NoteDivergence(do("gone"), "missing")) == []
