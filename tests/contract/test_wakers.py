"""What finds runs that nobody will wake does find them, each way in which one can be forgotten."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from ci_platform.model import OperationState, WorkerId
from ci_platform.testing import FakeClock, InMemoryStore
from ci_platform.testing.tables import Tables
from tests.contract.fault_stage import RUN, Fault, Play, Stage
from tests.contract.test_store_faults import CHILD, GROUP, pipeline
from tests.wakers import forgotten

SLEEPS = pipeline('await step.sleep("nap", "1 hour")')
WAITS = pipeline('await step.wait_for_event("first", type="go", timeout="1 hour")')
GATE = pipeline('await step.approval("gate", timeout="1 hour")')
RUNS_ONE = pipeline('await step.sh("one", "true")')
STARTS = pipeline('await step.start("one", Child, 1)', head=CHILD)


def never_due(tables: Tables) -> None:
    tables.runs[RUN] = replace(tables.runs[RUN], ready_ms=None)


def due_late(tables: Tables) -> None:
    ready_ms = tables.runs[RUN].ready_ms or 0
    tables.runs[RUN] = replace(tables.runs[RUN], ready_ms=ready_ms + 1)


def without_commands(tables: Tables) -> None:
    tables.operations.clear()


def command_done(tables: Tables) -> None:
    for id, one in tables.operations.items():
        tables.operations[id] = replace(one, state=OperationState.DONE)


def command_without_lease(tables: Tables) -> None:
    for id, one in tables.operations.items():
        tables.operations[id] = replace(one, state=OperationState.RUNNING, worker=None)


def lease_for_ever(tables: Tables) -> None:
    tables.runs[RUN] = replace(tables.runs[RUN], worker=WorkerId("w9"), lease_until_ms=None)


def child_gone(tables: Tables) -> None:
    tables.links.clear()


def slot_free(tables: Tables) -> None:
    del tables.runs[RUN]


@pytest.mark.parametrize(
    "code, breaks",
    [
        (SLEEPS, never_due),
        (SLEEPS, due_late),
        (SLEEPS, lease_for_ever),
        (WAITS, never_due),
        (GATE, due_late),
        (RUNS_ONE, without_commands),
        (RUNS_ONE, command_done),
        (RUNS_ONE, command_without_lease),
        (STARTS, child_gone),
        ("from pipelines import *\n" + GROUP, slot_free),
    ],
)
def test_a_run_that_nobody_will_wake_is_found(code: str, breaks: Callable[[Tables], None]) -> None:
    clock = FakeClock()
    store = InMemoryStore(clock)
    with closing(Stage(store, clock, Fault(), Play(code))) as stage:
        stage.runner.blocked = "commands wait"
        stage.start(RUN)
        stage.start("run_other")
        stage.work(stage.worker)
        assert forgotten(store, clock.now_ms()) == []
        breaks(store.runs._tables)
        assert forgotten(store, clock.now_ms())
