"""The runs that are played with workers being killed all the time: their users, and their ends.

A user looks, and does what the run waits for, as often as it takes. In the end every journal is
read by the reference of tests/model, which knows what no crash may change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx

from ci_platform.model import TERMINAL_STATES, Entry, EntryKind, Run, StepKey, StepKind
from tests.cluster import REPOSITORY, get, journal
from tests.crash.play import PIPELINE, key_of
from tests.model.reference import Told

LOOK_SECONDS = 0.1
SLACK_MS = 100  # of the clocks of processes that share PostgreSQL
RUN_SECONDS = 120
NEWER = PIPELINE.replace('code = "old"', 'code = await step.do("inserted", lambda: "new")')


@dataclass(frozen=True, slots=True)
class Play:
    """A run that is to be played once; `number` tells it from the others of its pipeline."""

    pipeline: str
    number: int
    tag: str = "cut"

    @property
    def id(self) -> str:
        return f"{self.pipeline.lower()}-{self.tag}-{self.number}"

    @property
    def branch(self) -> str:
        return self.id if self.pipeline == "Stored" else "main"

    @property
    def restarted(self) -> bool:
        """From a step, once it has ended."""
        return self.pipeline == "Stored" and self.number % 3 != 0

    @property
    def again(self) -> str:
        return f"{self.id}-again"

    @property
    def is_cancelled(self) -> bool:
        return self.pipeline == "Undone" and self.number % 2 == 0


def play(http: httpx.Client, what: Play) -> dict[str, Any]:
    """Be the user of this run, until it has ended; then check it."""
    if what.branch != "main":
        push(http, what.branch, PIPELINE)
    run = drive(http, what.id, lambda: start(http, what), lambda run: act(http, what, run))
    check(http, what, run)
    if what.restarted:
        body = {"id": what.again, "from": {"kind": "do", "name": "look", "occurrence": 1}}
        path = f"/api/v1/runs/{what.id}/restart"
        again = drive(http, what.again, lambda: http.post(path, json=body), lambda run: None)
        check(http, what, again)
    return run


def push(http: httpx.Client, branch: str, text: str) -> None:
    change = {"path": ".ci/pipeline.py", "content": text}
    body = {"branch": branch, "message": "the code", "changes": [change]}
    http.post(f"{REPOSITORY}/commits", json=body).raise_for_status()


def start(http: httpx.Client, what: Play) -> httpx.Response:
    body = {"id": what.id, "pipeline": what.pipeline, "ref": what.branch}
    return http.post(f"{REPOSITORY}/runs", json=body)


def act(http: httpx.Client, what: Play, run: Mapping[str, Any]) -> None:
    """What the run waits for; what was done already does no harm."""
    waits = {wait["kind"] for wait in run["waits"]}
    path = f"/api/v1/runs/{what.id}"
    if "wait" in waits and what.is_cancelled:
        http.post(f"{path}/cancel", json={"rollback": True})
    elif "wait" in waits:
        if what.pipeline == "Stored":
            push(http, what.branch, NEWER)
        http.post(f"{path}/events/go", json={"n": 1})
    elif "approval" in waits:
        http.post(f"{path}/approvals/ship", json={"decision": "approve"})


def drive(
    http: httpx.Client,
    run_id: str,
    begin: Callable[[], httpx.Response],
    help: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    end = time.monotonic() + RUN_SECONDS
    run: dict[str, Any] = {}
    while time.monotonic() < end:
        answer = http.get(f"/api/v1/runs/{run_id}")
        if answer.status_code == 404:
            assert begin().status_code == 201
            continue
        run = answer.raise_for_status().json()
        if run["state"] in TERMINAL_STATES:
            return run
        help(run)
        time.sleep(LOOK_SECONDS)
    raise AssertionError(f"{run_id} has not ended: {run}\n{journal(http, run_id)}")


# --- what must hold -------------------------------------------------------------------------------


def check(http: httpx.Client, what: Play, run: Mapping[str, Any]) -> None:
    told = read(http, run)
    values = {key: step.result for key, step in told.steps.items() if step.state == "passed"}
    match what.pipeline:
        case "Scenario":
            assert run["state"] == "passed", run
            assert run["output"] == {"do": [1, 2], "event": {"n": 1}, "lines": "one two"}
        case "Stored":
            assert (run["state"], run["output"]) == ("passed", ["same", [1, 1], "new"]), run
        case _:
            ends = ("cancelled", None) if what.is_cancelled else ("failed", "ValueError")
            assert (run["state"], run["error"] and run["error"]["type"]) == ends, run
            assert told.undoing and not told.to_undo, "all is undone"
            assert values["do:$rollback:do:book"] == "seat given back"
            assert values["run:child"]["output"] == 4
            children = get(http, f"/api/v1/runs/{run['id']}")["children"]
            assert len(children) == 2, "each step starts one run, however often it is begun"


def read(http: httpx.Client, run: Mapping[str, Any], *, slack_ms: int = SLACK_MS) -> Told:
    """Let the reference read a run's journal."""
    entries = [entry_of(data) for data in journal(http, run["id"])]
    row = SimpleNamespace(
        commit=entries[0].data["commit"],
        resume="latest" if "stored" in run["id"] else "pinned",
        timeout_ms=None,
    )
    told = Told(cast(Run, row), slack_ms=slack_ms)
    told.hear(entries)
    assert told.ended
    return told


def entry_of(data: Mapping[str, Any]) -> Entry:
    key = None
    if data["key"] is not None:
        kind, name, occurrence = key_of(dict(data))
        key = StepKey(StepKind(kind), name, occurrence)
    kind_of = EntryKind(data["kind"])
    return Entry(data["seq"], kind_of, data["at_ms"], data["data"], key, data["attempt"])
