"""Bombs: how soon each ends after its limit, and what the platform takes for others meanwhile.

A bomb is a command that takes all it can get. The others are 3-step runs of another repository,
one after the other: with nothing else going on, beside all bombs at once, and beside each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from bench.measure import Result, latency, missing, most, percentile
from bench.pipelines import HEAD, THREE_STEPS
from bench.server import DONE, Server, serving

RUNS = 60
SECONDS_MAX = 5.0
FACTOR_MAX = 2.0
_LIMIT_SECONDS = 120
_STEP = "sh:bomb"
_LAST_LINES = 20
_BOMBS: Mapping[str, str] = {
    "fork": "exec python3 -c 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'",
    "memory": "exec python3 -c 'a = []\nwhile True: a.append(b\"x\" * 10**7)'",
    "disk": "i=0; while true; do head -c 50000000 /dev/zero > big$i; i=$((i + 1)); done",
    "output": "exec yes $(head -c 2000 /dev/zero | tr '\\0' x)",
}
_SETTINGS = {
    "SLUICE_COMMAND_PIDS": "200",
    "SLUICE_COMMAND_MEMORY_BYTES": str(512 << 20),
    "SLUICE_COMMAND_DISK_BYTES": str(512 << 20),
    "SLUICE_COMMAND_OUTPUT_BYTES": str(64 << 20),
}


def bombs() -> list[Result]:
    with _settings(_SETTINGS), serving() as server:
        server.create_repository("three", THREE_STEPS)
        for name, script in _BOMBS.items():
            server.create_repository(name, f"{HEAD}        await step.sh('bomb', {script!r})\n")
        _one_by_one(server, 10)
        alone = _one_by_one(server, RUNS)
        with _going_off(server) as started:
            beside = _one_by_one(server, RUNS)
        each = {name: _until_it_ends(server, name) for name in _BOMBS}
        ends = [row for name, run_id in started.items() for row in _ended(server, name, run_id)]
    idle = percentile(alone, 0.99)
    return [
        *ends,
        latency("3-step run of others, alone", alone),
        latency("3-step run of others, beside the bombs", beside),
        _factor("p99 beside the bombs to p99 alone", beside, idle),
        *(_factor(f"p99 beside the {name} bomb", times, idle) for name, times in each.items()),
    ]


def _factor(what: str, times: list[float], idle: float) -> Result:
    return most(what, percentile(times, 0.99) / idle, "x", bar=FACTOR_MAX, n=len(times))


def _until_it_ends(server: Server, name: str) -> list[float]:
    run_id, times = server.start(name), []
    while server.run(run_id)["state"] not in DONE:
        times += _one_by_one(server, 1)
    return times


@contextmanager
def _settings(given: Mapping[str, str]) -> Iterator[None]:
    """Variables for servers started meanwhile, which inherit ours."""
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _one_by_one(server: Server, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        server.wait(server.start("three"))
        times.append(time.perf_counter() - began)
    return times


@contextmanager
def _going_off(server: Server) -> Iterator[Mapping[str, str]]:
    started = {name: server.start(name) for name in _BOMBS}
    yield started
    for run_id in started.values():
        server.wait(run_id, seconds=_LIMIT_SECONDS)


def _ended(server: Server, name: str, run_id: str) -> list[Result]:
    """How long a bomb went on after the line of its log that says the limit it went over, and in
    all: what it takes to get there depends on how busy the machine is."""
    what = f"{name} bomb: from its limit to its end"
    entries = server.journal(run_id)
    step = [entry for entry in entries if (entry.get("key") or {}).get("kind") == "sh"]
    said = str(server.run(run_id).get("error"))
    told_ms = _told_ms(server, run_id)
    if "SLUICE_COMMAND_" not in said or told_ms is None:
        return [missing(what, f"it did not end by its limit: {said[:80]}")]
    began_ms, ended_ms = step[0]["at_ms"], step[-1]["at_ms"]
    return [
        most(what, (ended_ms - told_ms) / 1e3, "s", bar=SECONDS_MAX),
        Result(f"{name} bomb: from its start to its end", (ended_ms - began_ms) / 1e3, "s", 1),
    ]


def _told_ms(server: Server, run_id: str) -> float | None:
    """When the log of a bomb said that it was over a limit."""
    path = f"/api/v1/runs/{run_id}/logs"
    after = server.http.get(path, params={"step": _STEP}).json()["logs"]
    last = next(one["lines"] for one in after if one["step"] == _STEP)
    asked = {"step": _STEP, "after": max(0, last - _LAST_LINES), "limit": _LAST_LINES}
    lines = server.http.get(path, params=asked).json()["lines"]
    said = (line["at"] for line in lines if "SLUICE_COMMAND_" in line["text"])
    return next((datetime.fromisoformat(at).timestamp() * 1e3 for at in said), None)
