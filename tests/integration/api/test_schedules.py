"""Schedules: declared by a push to the default branch, fired by the clock."""

from __future__ import annotations

import pytest

from ci_platform.model import SYSTEM, Json, RunState
from tests.integration.api.front import BROKEN, PUSHED, Front, pipeline_file

HOUR = 3600
HOURLY: dict[str, Json] = {"kind": "schedule", "cron": "0 * * * *", "timezone": "UTC"}


def scheduled(*crons: str, name: str = "CI", timezone: str = "UTC") -> str:
    triggers = [{"kind": "schedule", "cron": cron, "timezone": timezone} for cron in crons]
    return pipeline_file({"name": name, "triggers": triggers})


def to_the_hour(front: Front) -> None:
    """So that an hourly schedule is due in exactly one."""
    front.clock.advance(HOUR - front.clock.now_ms() / 1000 % HOUR)


def test_a_schedule_starts_a_run_of_the_default_branch_at_its_time(front: Front) -> None:
    to_the_hour(front)
    repository = front.repository(pipeline=scheduled("0 * * * *"))
    assert front.runs(repository) == []
    front.clock.advance(HOUR - 1)
    assert front.commands.schedules.fire_due() == 0
    front.clock.advance(1)
    assert front.commands.schedules.fire_due() == 1
    assert front.commands.schedules.fire_due() == 0
    (run,) = front.runs(repository)
    assert (run.trigger, run.ref, run.pipeline) == ("schedule", "refs/heads/main", "CI")
    assert (run.state, run.actor) == (RunState.QUEUED, "schedule")
    assert run.event["payload"] == {
        "cron": "0 * * * *",
        "timezone": "UTC",
        "scheduled_ms": front.clock.now_ms(),
    }


def test_of_the_times_that_were_missed_the_latest_is_made_up_for(front: Front) -> None:
    to_the_hour(front)
    repository = front.repository(pipeline=scheduled("0 * * * *"))
    front.clock.advance(5.5 * HOUR)
    assert front.commands.schedules.fire_due() == 1
    (run,) = front.runs(repository)
    assert run.event["payload"]["scheduled_ms"] == front.clock.now_ms() - HOUR * 500
    front.clock.advance(HOUR / 2)
    assert front.commands.schedules.fire_due() == 1


def test_a_process_that_dies_while_firing_starts_nothing_twice(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_the_hour(front)
    repository = front.repository(pipeline=scheduled("0 * * * *"))
    front.clock.advance(HOUR)
    with monkeypatch.context() as died:
        died.setattr(type(front.store.schedules), "move", lambda *_: False)
        front.commands.schedules.fire_due()
    front.commands.schedules.fire_due()
    assert len(front.runs(repository)) == 1


def test_a_push_to_the_default_branch_changes_the_schedules(front: Front) -> None:
    repository = front.repository(pipeline=scheduled("0 * * * *", "0 3 * * *"))
    before = front.store.schedules.of_repository(repository.id)
    front.clock.advance(10)
    front.push(repository, {".ci/pipeline.py": scheduled("0 3 * * *", "0 4 * * *")})
    after = front.store.schedules.of_repository(repository.id)
    assert [one.cron for one in after] == ["0 3 * * *", "0 4 * * *"]
    assert after[0] == next(one for one in before if one.cron == "0 3 * * *")
    front.push(repository, {".ci/pipeline.py": PUSHED})
    assert front.store.schedules.of_repository(repository.id) == []


def test_a_file_that_does_not_load_leaves_the_schedules_and_starts_nothing(front: Front) -> None:
    to_the_hour(front)
    repository = front.repository(pipeline=scheduled("0 * * * *"))
    front.push(repository, {".ci/pipeline.py": BROKEN})
    assert len(front.store.schedules.of_repository(repository.id)) == 1
    front.clock.advance(HOUR)
    assert front.commands.schedules.fire_due() == 1
    assert [run.trigger for run in front.runs(repository)] == ["push"]
    assert front.commands.schedules.fire_due() == 0


def test_a_schedule_that_is_none_is_told_to_the_pusher(front: Front) -> None:
    front.repository(pipeline=scheduled("99 * * * *"))
    assert any("on_schedule of CI: cron '99 * * * *' is not valid" in line for line in front.said)


def test_the_schedules_of_a_deleted_repository_end(front: Front) -> None:
    repository = front.repository(pipeline=scheduled("0 * * * *"))
    front.commands.repositories.delete(SYSTEM, "acme", "widget")
    front.clock.advance(2 * HOUR)
    front.commands.schedules.fire_due()
    assert front.store.schedules.of_repository(repository.id) == []
