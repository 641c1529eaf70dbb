"""Judges a run that has ended: the reference of tests/model reads its journal, and what its plan
foretells is held against its end and each of its results.
"""

from __future__ import annotations

from typing import Any

import httpx

from ci_platform.model import Entry, EntryKind
from tests.cluster import get
from tests.crash.plays import read
from tests.model.reference import holds
from tests.storm.foretelling import Foretold, agree
from tests.storm.people import Played

CANCELLED = "cancelled"
SLACK_MS = 2_000  # from a decision to its entry, on a machine that is busy with killing


def judge(http: httpx.Client, play: Played, run: dict[str, Any]) -> None:
    """Raises Broken."""
    told = read(http, run, slack_ms=SLACK_MS)
    results = {
        str(entry.key): entry.data["value"]
        for entry in told.entries
        if entry.kind is EntryKind.STEP_PASSED
    }
    twice = [str(entry.key) for entry in told.entries if entry.kind is EntryKind.STEP_PASSED]
    holds(len(twice) == len(set(twice)), f"a step passes once: {twice}")
    holds(told.entries[-1].kind == f"run_{run['state']}", "people see what the journal says")
    if run["state"] == CANCELLED:
        holds(play.stopped or play.parent is not None, "nobody cancelled it")
        return
    state, what = Foretold(play.code, play.pipeline, results).end()
    holds(run["state"] == state, f"it must be {state} ({what}), not {run['state']}: {run['error']}")
    if isinstance(what, set):
        holds(run["error"]["type"] in what, f"it fails with {run['error']}, not one of {what}")
        _is_undone(told.entries)
    else:
        agree(run["output"], what)


def _is_undone(entries: list[Entry]) -> None:
    """A failed run has rolled back, if it had begun what can be undone."""
    undo = [e for e in entries if e.kind is EntryKind.ROLLBACK_STARTED]
    began = [
        e
        for e in entries
        if e.kind is EntryKind.STEP_STARTED and (e.data.get("config") or {}).get("rollback")
    ]
    holds(bool(undo) == bool(began), "what began and can be undone is undone")
    if undo:
        outcome = (entries[-1].data.get("rollback") or {}).get("outcome")
        holds(outcome == "complete", f"the rollback ends well: {entries[-1].data['rollback']}")


def found(http: httpx.Client, play: Played) -> str:
    """What a run looks like to whoever has to find out why."""
    run = get(http, f"/api/v1/runs/{play.id}")
    entries = get(http, f"/api/v1/runs/{play.id}/journal")["entries"]
    lines = [f"{play.id} ({play.pipeline} of {play.parent}): {run['state']} {run['error']}"]
    lines += [f"plan: {play.code}", f"waits: {run['waits']}"]
    for each in entries:
        key = each["key"] and f"{each['key']['kind']}:{each['key']['name']}"
        lines.append(f"  {each['seq']} {each['at_ms']} {each['kind']} {key} {each['data']}"[:300])
    return "\n".join(lines)
