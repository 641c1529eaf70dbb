"""Services in the journal: open while their block is, awaited by nothing, carried by commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.engine import cancel, fold, pause
from ci_platform.engine.sharing import shared
from ci_platform.errors import LimitExceeded, PipelineError
from ci_platform.model import (
    Entry,
    EntryKind,
    FinishAttempt,
    Json,
    RunState,
    StartStep,
    StepKey,
    StepKind,
    StepState,
)
from ci_platform.shell import CommandSpec, ServiceSpec
from tests.unit.engine.journal import (
    COMMIT,
    RUN,
    Journal,
    row,
    shown,
    start_approval,
    start_sh,
)
from tests.unit.engine.test_operations import OK, finish, opened

DB = StepKey(StepKind.SERVICE, "db")
CONFIG: dict[str, Json] = {
    "script": "postgres",
    "env": {"A": "1"},
    "ready": {"port": 5432},
    "timeout_ms": 5_000,
}


def start_service(name: str = "db", **config: Json) -> StartStep:
    return StartStep(StepKey(StepKind.SERVICE, name), {**CONFIG, **config})


def begun() -> Journal:
    """A block is open, in which a command has passed and left a layer."""
    journal = Journal().claim()
    journal.ask(start_service(), start_sh("migrate", services=["service:db"]))
    finish(journal, opened(journal), OK)
    return journal


def test_an_open_service_is_no_wait_and_no_attempt_in_flight() -> None:
    journal = begun()
    journal.ask(start_approval("go on"))
    journal.suspend()
    assert shown(journal) is RunState.WAITING
    assert [wait.kind for wait in row(journal).waits] == ["approval"]
    assert journal.view.steps[DB].state is StepState.RUNNING
    journal.decide(lambda view, now_ms: pause(view, "ada", now_ms))
    assert shown(journal) is RunState.PAUSED


def test_a_service_ends_when_the_code_leaves_its_block() -> None:
    journal = begun()
    journal.ask(FinishAttempt(DB, 1))
    assert journal.kinds_of(DB) == ["step_started", "step_passed"]
    with pytest.raises(PipelineError, match="'db' was ended, but it is not open"):
        journal.ask(FinishAttempt(DB, 1))


def test_the_end_of_a_run_ends_its_services() -> None:
    journal = begun()
    journal.decide(lambda view, now_ms: cancel(view, "ada", now_ms))
    assert journal.kinds_of(DB) == ["step_started", "step_cancelled"]


def test_a_command_carries_the_services_around_it_on_the_files_of_their_start() -> None:
    journal = begun()
    journal.ask(
        start_service("web", script="serve"),
        start_sh("test", services=["service:db", "service:web"], cache={"inputs": [], "key": ""}),
    )
    spec = CommandSpec(**opened(journal).spec)
    db, web = (ServiceSpec(**one) for one in spec.services)
    assert (db.name, db.ready, db.ready_ms) == ("db", {"port": 5432}, 5_000)
    beside = CommandSpec(**db.command)
    assert (beside.step, beside.script, beside.commit) == ("service:db", "postgres", COMMIT)
    assert (list(beside.base), list(CommandSpec(**web.command).base)) == ([], ["l1"])
    assert (beside.env["A"], beside.env["CI_STEP_NAME"]) == ("1", "db")
    assert "CI_STEP_ATTEMPT" not in beside.env  # the same for every command around
    assert spec.cache is not None
    assert [one["script"] for one in spec.cache["services"]] == ["postgres", "serve"]


def test_a_command_outside_of_a_block_carries_none() -> None:
    journal = begun()
    journal.ask(start_sh("after"))
    assert CommandSpec(**opened(journal).spec).services == ()


def test_a_command_whose_service_has_ended_is_refused() -> None:
    journal = begun()
    journal.ask(FinishAttempt(DB, 1))
    with pytest.raises(PipelineError, match="'service:db', which is not open any more"):
        journal.ask(start_sh("late", services=["service:db"]))
    for odd in ("sh:migrate", "service:", "nothing", "service:other"):
        with pytest.raises(PipelineError, match="not open"):
            begun().ask(start_sh("late", services=[odd]))


def test_too_many_services_around_a_command_are_refused() -> None:
    journal = Journal().claim()
    with pytest.raises(LimitExceeded, match="9 services around it; the limit is 8"):
        journal.ask(start_sh("test", services=["service:db"] * 9))


@pytest.mark.parametrize("what", ["secrets", "network"])
def test_services_of_untrusted_code_get_no_secrets_and_no_network(what: str) -> None:
    journal = Journal(run=replace(RUN, trusted=False)).claim()
    with pytest.raises(PipelineError, match=f"service 'db' asks for {what}"):
        journal.ask(start_service("db", **dict[str, Json]({what: ["X"]})))


@pytest.mark.parametrize(
    "ready", [{}, {"port": 0}, {"port": 1, "log": "x"}, {"shout": "x"}, {"http": 5}, "5432"]
)
def test_odd_checks_are_refused(ready: Json) -> None:
    with pytest.raises(PipelineError, match="ready of step 'db'"):
        Journal().claim().ask(start_service(ready=ready))


def test_what_goes_on_inside_a_block_opens_it_again() -> None:
    journal = begun()
    journal.ask(start_sh("test", services=["service:db"]))
    finish(journal, opened(journal), replace(OK, layer=None))
    journal.ask(FinishAttempt(DB, 1))
    journal.ask(start_sh("after"))

    def kept(target: str) -> list[str]:
        found = shared(journal.view, journal.entries, StepKey(StepKind.SH, target), COMMIT)
        created = Entry(1, EntryKind.RUN_CREATED, 5_000, {"commit": COMMIT, "shared": {}})
        return [str(step) for step in fold(RUN, [created, *found]).steps]

    assert kept("test") == ["sh:migrate"]
    assert kept("after") == ["service:db", "sh:migrate", "sh:test"]
