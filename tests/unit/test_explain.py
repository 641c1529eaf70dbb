"""What people are told: why a run waits, whom it does again, how its code changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ci_platform.model import (
    Entry,
    EntryKind,
    Json,
    Origin,
    RunId,
    Step,
    StepKey,
    StepKind,
    StepState,
    WorkerId,
)
from ci_platform.ports.housekeeping import WorkerRecord
from ci_platform.queries.explain import (
    Again,
    Stuck,
    again,
    as_queued,
    code_changes,
    command_queues,
    queue_view,
)
from ci_platform.queries.explain import stuck as told_stuck
from ci_platform.scheduling import AHEAD_MAX, Hold, Place, Standing
from tests.unit.engine.journal import RUN


def worker(*labels: str) -> WorkerRecord:
    return WorkerRecord(WorkerId("w"), "host", 1, 0, 0, 1_000, labels=labels)


@pytest.mark.parametrize(
    ("run", "standing", "workers", "waits_for", "reason"),
    [
        ({"hold": Hold.GROUP, "place": Place("g")}, Standing(2, [4]), 1, "group", "g: #4 is run"),
        ({"hold": Hold.LIMIT}, Standing(0, [4, 5]), 1, "repository", "repository: #4, #5 are run"),
        ({}, Standing(0, [], every=8), 1, "everyone", "all repositories: 8 runs execute"),
        ({}, Standing(0, []), 0, "no_worker", "none is there"),
        ({}, Standing(0, []), 1, "worker", "a free worker"),
    ],
)
def test_a_queued_run_says_what_it_waits_for(
    run: dict[str, Any], standing: Standing, workers: int, waits_for: str, reason: str
) -> None:
    view = queue_view(replace(RUN, **run), standing, [worker()] * workers)
    assert (view.position, view.waits_for) == (standing.ahead + 1, waits_for)
    assert reason in view.reason


def command(name: str, *labels: str) -> Step:
    key = StepKey(StepKind.SH, name)
    return Step(key, StepState.RUNNING, 1, "c" * 40, 0, None, {"labels": list(labels)})


def stuck(steps: Sequence[Step], workers: Sequence[WorkerRecord]) -> list[Stuck]:
    """Of steps that are all queued."""
    return told_stuck(command_queues(steps, {step.key: 0 for step in steps}, workers))


def test_a_queued_command_says_where_it_stands_and_what_it_waits_for() -> None:
    steps = [command("runs"), command("next"), command("big", "gpu", "amd64"), command("lost", "x")]
    ahead = {step.key: n for step, n in zip(steps[1:], (0, AHEAD_MAX, 2), strict=True)}
    queues = command_queues(steps, ahead, [worker("gpu", "amd64")])
    assert [(key.name, one.place, one.waits_for, one.reason) for key, one in queues.items()] == [
        ("next", "1", "worker", "waiting for a free worker"),
        ("big", "1,000+", "worker", "waiting for a free worker with the labels amd64, gpu"),
        ("lost", "3", "no_worker", "no worker with the label x is there"),
    ]
    states = [step.state for step in as_queued(steps, queues)]
    assert states == [StepState.RUNNING, *[StepState.QUEUED] * 3]


def test_a_command_that_no_worker_can_take_says_which_labels_it_misses() -> None:
    steps = [command("plain"), command("big", "gpu", "amd64")]
    assert stuck(steps, [worker("amd64", "gpu", "linux")]) == []
    (found,) = stuck(steps, [worker("amd64"), worker("gpu")])
    assert (found.step.name, found.reason) == (
        "big",
        "no worker with the labels amd64, gpu is there",
    )
    assert [one.reason for one in stuck(steps, [])] == ["no worker is there"] * 2


def test_a_command_that_waits_for_room_on_the_disks_of_workers_says_so() -> None:
    full, free = replace(worker("gpu"), obstacle="the worker's disk has 1 MiB free"), worker()
    assert stuck([command("plain")], [full, free]) == []
    assert stuck([command("big", "gpu")], [replace(full, operations=1), free]) == []
    (found,) = stuck([command("big", "gpu")], [full, free])
    assert found.reason == "the worker's disk has 1 MiB free"


def test_a_run_says_which_other_one_it_does_again() -> None:
    origin = Origin(RunId("run_1"), 1)
    shared = {"run": "run_1", "number": 1, "from": "sh:x"}
    assert again({"shared": shared}) == Again(origin, "sh:x")
    assert again({"again": {"run": "run_1", "number": 1}}) == Again(origin, None)
    assert again({}) is None


def entry(seq: int, kind: EntryKind, name: str = "", **data: Json) -> Entry:
    key = StepKey(StepKind.DO, name) if name else None
    return Entry(seq, kind, seq * 10, data, key)


def test_changes_of_the_code_are_told_by_commit_with_what_they_did_to_the_steps() -> None:
    wrong = {"type": "SyntaxError", "message": "line 1"}
    entries = [
        entry(1, EntryKind.RUN_CREATED, commit="a"),
        entry(1, EntryKind.COMMIT_RESOLVED, commit="of what is shared"),
        entry(1, EntryKind.RUN_CLAIMED),
        entry(2, EntryKind.DIVERGED, change="fell_back", commit="b", error=wrong),
        entry(3, EntryKind.COMMIT_RESOLVED, commit="c"),
        entry(4, EntryKind.DIVERGED, "new", change="inserted", commit="c"),
        entry(5, EntryKind.DIVERGED, "old", change="missing", commit="c"),
        entry(6, EntryKind.DIVERGED, "newer", change="inserted", commit="d"),
    ]
    broken, worked, noted = code_changes(entries)
    assert (broken.commit, broken.error and broken.error.type) == ("b", "SyntaxError")
    assert (worked.seq, worked.commit, worked.error) == (3, "c", None)
    assert (worked.inserted, worked.missing) == (["new"], ["old"])
    assert (noted.commit, noted.inserted, noted.missing) == ("d", ["newer"], [])
    assert code_changes(entries[:3]) == []
