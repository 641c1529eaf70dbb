"""The run that the crash tests play, its user, and what must hold of it in the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from ci_platform.model import TERMINAL_STATES
from tests.cluster import LOOK_SECONDS, REPOSITORY, RUN_SECONDS, journal

PIPELINE = (Path(__file__).parent / "pipeline.py").read_text()


def drive(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """Be the run's user: start it, send its event, approve its gate, until it has ended.

    Each act is repeated if its answer was lost, as a careful client does: it looks first.
    """
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        answer = http.get(f"/api/v1/runs/{run_id}")
        if answer.status_code == 404:
            started = http.post(f"{REPOSITORY}/runs", json={"id": run_id, "pipeline": "Scenario"})
            assert started.status_code in (201, 409), started.text
            continue
        answer.raise_for_status()
        run: dict[str, Any] = answer.json()
        if run["state"] in TERMINAL_STATES:
            return run
        kinds = {entry["kind"] for entry in journal(http, run_id)}
        waits = {wait["kind"] for wait in run["waits"]}
        if "wait" in waits and "event_received" not in kinds:
            http.post(f"/api/v1/runs/{run_id}/events/go", json={"n": 1})
        elif "approval" in waits and "approval_decided" not in kinds:
            path = f"/api/v1/runs/{run_id}/approvals/ship"
            http.post(path, json={"decision": "approve"})
        time.sleep(LOOK_SECONDS)
    raise AssertionError(f"{run_id} has not ended: {json.dumps(run, indent=1)}")


def key_of(entry: dict[str, Any]) -> tuple[str, str, int]:
    key = entry["key"]
    return key["kind"], key["name"], key["occurrence"]


def check(http: httpx.Client, run_id: str, run: dict[str, Any]) -> None:
    """What must hold however often the power failed."""
    assert run["state"] == "passed", run["error"]
    assert run["output"] == {"do": [1, 2], "event": {"n": 1}, "lines": "one two"}
    entries = journal(http, run_id)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    passed = Counter(key_of(e) for e in entries if e["kind"] == "step_passed")
    assert set(passed.values()) == {1}, "a step finished twice"
    assert {name for _, name, _ in passed} == {
        *("first", "second", "one", "two", "nap", "go", "ship", "read"),
    }
    for key in passed:
        of_step = [e["kind"] for e in entries if e["key"] and key_of(e) == key]
        assert of_step[-1] in ("step_passed", "approval_decided"), "executed after it had finished"
        attempts = 1 + of_step.count("attempt_started")
        assert attempts <= 2, f"{key} needed {attempts} attempts for one power cut"
    assert Counter(e["kind"] for e in entries)["event_received"] <= 2
    assert [e["kind"] for e in entries].count("approval_decided") == 1
