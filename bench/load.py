"""Fairness under load: a thousand repositories, tens of thousands of sleepers, and one that floods.

The delay of the others' runs, from their creation to their first step, is read from their journals,
once with nothing else runnable and once beside the flood. They arrive in the same way both times:
all at once, and one by one at a steady rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bench.databases import EMBEDDED, SCALED, database
from bench.measure import Result, latency, percentile
from bench.pipelines import EITHER
from bench.server import Server, serving

REPOSITORIES = 1000
WAITING = 50_000
RUNNABLE = 2000
FLOOD = "flood"
CLIENTS = 4
RATE = 20.0  # runs a second that arrive one by one
STEADY_SECONDS = 20.0
FACTOR_MAX = 2.0

T = TypeVar("T")


def load() -> list[Result]:
    return [row for kind in (EMBEDDED, SCALED) for row in _load(kind)]


def _load(kind: str) -> list[Result]:
    with database(kind) as url, serving(database_url=url) as server:
        others = _populate(server)
        flood = RUNNABLE - len(others)
        alone = _at_once(server, others, flood=0)
        beside = _at_once(server, others, flood=flood)
        steady_alone = _one_by_one(server, others)
        with _Flood(server, flood):
            steady_beside = _one_by_one(server, others)
        server.drained()
    state = f"{kind}, {WAITING:,} waiting"
    return [
        *_rows(f"{state}: {len(others)} repositories at once", alone, beside),
        *_rows(f"{state}: {RATE:g} runs a second", steady_alone, steady_beside),
    ]


def _rows(what: str, alone: Sequence[float], beside: Sequence[float]) -> list[Result]:
    ratio = percentile(beside, 0.99) / percentile(alone, 0.99)
    return [
        latency(f"{what}, start delay", alone),
        latency(f"{what}, start delay beside a flood", beside),
        Result(
            f"{what}, p99 beside the flood to p99 without",
            ratio,
            "x",
            len(beside),
            bar=f"< {FACTOR_MAX:g}x",
            passed=ratio < FACTOR_MAX,
        ),
    ]


def _populate(server: Server) -> list[str]:
    """The repositories, forks of one, and the runs that wait in them. Returns the others' names."""
    server.create_repository(FLOOD, EITHER)
    others = [f"other{number:04}" for number in range(REPOSITORIES - 1)]

    def fork(name: str) -> None:
        body = {"owner": "bench", "name": name}
        server.http.post(f"/api/v1/repos/bench/{FLOOD}/fork", json=body).raise_for_status()

    _all(fork, others)
    each = WAITING // REPOSITORIES
    _all(lambda name: server.start_many(name, each, params="wait"), [FLOOD, *others])
    server.drained(poll=0.5)
    return others


def _at_once(server: Server, names: Sequence[str], *, flood: int) -> list[float]:
    """One run of each repository, as fast as they can be created."""
    server.start_many(FLOOD, flood)
    run_ids = _all(server.start, names)
    server.drained()
    return _delays(server, run_ids)


def _one_by_one(server: Server, names: Sequence[str]) -> list[float]:
    """A run of one repository after another, at a steady rate."""
    run_ids = []
    begun = time.monotonic()
    for number in range(round(RATE * STEADY_SECONDS)):
        time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
        run_ids.append(server.start(names[number % len(names)]))
    for run_id in run_ids:
        server.wait(run_id)
    return _delays(server, run_ids)


def _delays(server: Server, run_ids: Iterable[str]) -> list[float]:
    """Seconds from the creation of each run to its first step."""

    def delay(run_id: str) -> float:
        at_ms: dict[str, int] = {}
        for entry in server.journal(run_id):
            at_ms.setdefault(entry["kind"], entry["at_ms"])
        return (at_ms["step_started"] - at_ms["run_created"]) / 1e3

    return list(map(delay, run_ids))


def _all(work: Callable[[str], T], names: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(work, names))


class _Flood:
    """A repository that always has so many runs to do, for as long as the block lasts."""

    def __init__(self, server: Server, standing: int) -> None:
        self._server = server
        self._standing = standing
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_up)

    def __enter__(self) -> None:
        self._server.start_many(FLOOD, self._standing)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep_up(self) -> None:
        while not self._over.wait(0.05):
            missing = self._standing - self._server.count("queued")
            if missing > 0:
                self._server.start_many(FLOOD, missing)
