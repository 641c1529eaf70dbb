"""Groups and priorities, from the pipeline file to what people see."""

from __future__ import annotations

import pytest

from ci_platform.commands import StartRun
from ci_platform.model import (
    SYSTEM,
    EntryKind,
    Json,
    Run,
    RunState,
    StartStep,
    StepKey,
    StepKind,
    WorkerId,
)
from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.scheduling import Hold
from tests.integration.api.front import Front, pipeline_file


def grouped(on_new: str = "queue", group: str = "{ref}") -> str:
    concurrency = {"group": group, "limit": 1, "on_new": on_new}
    triggers = [{"kind": "push"}, {"kind": "manual"}]
    return pipeline_file({"name": "CI", "triggers": triggers, "concurrency": concurrency})


def start(front: Front, **given: Json) -> Run:
    return front.commands.runs.start(SYSTEM, "acme", "widget", StartRun(**given))


def again(front: Front, run: Run) -> Run:
    return front.store.runs.get(run.id)


def test_every_run_of_a_queue_is_executed_in_order(front: Front) -> None:
    repository = front.repository(pipeline=grouped())
    (first,) = front.runs(repository)
    second, third = start(front), start(front)
    assert [run.hold for run in (first, second, third)] == [None, Hold.GROUP, Hold.GROUP]
    front.finish(first.id)
    assert [again(front, run).hold for run in (second, third)] == [None, Hold.GROUP]
    front.finish(second.id)
    front.finish(third.id)
    assert {run.state for run in front.runs(repository)} == {RunState.PASSED}


def test_a_queue_of_twenty_keeps_every_run_in_order_and_drops_none(front: Front) -> None:
    repository = front.repository(pipeline=grouped())
    (first,) = front.runs(repository)
    later = [start(front) for _ in range(19)]
    ended: list[int] = []
    while waiting := [run for run in [first, *later] if not again(front, run).state.terminal]:
        free = [run for run in waiting if again(front, run).hold is None]
        assert [run.number for run in free] == [waiting[0].number], "one at a time, the oldest"
        places = [front.queries.run_page(SYSTEM, run.id).queue for run in waiting[1:]]
        assert [place and place.position for place in places] == list(range(1, len(waiting)))
        assert all(place and f"#{free[0].number} is running" in place.reason for place in places)
        front.finish(free[0].id)
        ended.append(free[0].number)
    assert ended == list(range(1, 21))
    assert {run.state for run in front.runs(repository)} == {RunState.PASSED}


def test_a_newer_push_ends_what_runs_on_its_branch(front: Front) -> None:
    repository = front.repository(pipeline=grouped("cancel_running"))
    (first,) = front.runs(repository)
    front.wait_for(first.id, "never")
    front.push(repository, {"README": "newer"})
    newest, old = front.runs(repository)
    assert (old.state, old.reason) == (RunState.CANCELLED, "superseded")
    assert (newest.state, newest.hold) == (RunState.QUEUED, None)
    entries = front.store.runs.journal(old.id)
    (asked,) = [entry for entry in entries if entry.kind is EntryKind.CANCEL_REQUESTED]
    assert asked.data["actor"] == "run #2"


def test_a_newer_run_ends_only_queued_ones_if_told_so(front: Front) -> None:
    repository = front.repository(pipeline=grouped("cancel_queued"))
    (first,) = front.runs(repository)
    front.wait_for(first.id, "never")
    second, third = start(front), start(front)
    states = [again(front, run).state for run in (first, second, third)]
    assert states == [RunState.WAITING, RunState.CANCELLED, RunState.QUEUED]
    assert again(front, third).hold is Hold.GROUP


def test_what_a_dead_process_left_undone_is_done_by_the_next(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = front.repository(pipeline=grouped("cancel_running"))
    (first,) = front.runs(repository)
    with monkeypatch.context() as died:
        died.setattr("ci_platform.commands.starting.supersede", lambda parts: 0)
        start(front)
    assert again(front, first).state is RunState.QUEUED
    assert front.commands.runs.supersede_pending() == 1
    assert again(front, first).reason == "superseded"
    assert front.commands.runs.supersede_pending() == 0


@pytest.mark.anyio
async def test_a_command_is_queued_until_a_worker_takes_it(front: Front) -> None:
    (run,) = front.runs(front.repository())
    build = StartStep(StepKey(StepKind.SH, "build"), {"script": "make", "labels": ["gpu"]})
    front.play(run.id, build)
    now_ms = front.clock.now_ms()
    front.store.workers.beat(WorkerRecord(WorkerId("w"), "host", 1, now_ms, now_ms, now_ms))
    async with front.client(front.token()) as client:

        async def shown() -> Json:
            answer = (await client.get(f"/api/v1/runs/{run.id}")).json()
            (step,) = answer["steps"]
            return answer["state"], step["state"], step["queue"], answer["stuck"]

        reason = "no worker with the label gpu is there"
        queue = {"position": 1, "waits_for": "no_worker", "reason": reason}
        stuck = [{"step": "sh:build", "reason": reason}]
        assert await shown() == ("running", "queued", queue, stuck)
        front.store.operations.claim(WorkerId("w"), limit=1, lease_ms=1_000, labels=["gpu"])
        assert await shown() == ("running", "running", None, [])


@pytest.mark.anyio
async def test_a_held_run_says_what_it_waits_for(front: Front) -> None:
    front.repository(pipeline=grouped())
    front.claim()
    start(front)
    third = start(front, priority=7)
    async with front.client(front.token()) as client:
        shown = (await client.get(f"/api/v1/runs/{third.id}")).json()
        assert shown["queue"] == {
            "position": 1,
            "waits_for": "group",
            "reason": "waiting for group refs/heads/main: #1 is running",
        }
        assert (shown["group"], shown["priority"]) == ("refs/heads/main", 7)
        (wait,) = shown["waits"]
        assert (wait["kind"], wait["name"]) == ("group", "refs/heads/main")
        started = await client.post("/api/v1/repos/acme/widget/runs", json={"priority": 101})
        assert (started.status_code, started.json()["field"]) == (400, "priority")
