"""Our side of the comparison: the same measures as the peers' programs, through our HTTP API.

Everything is as in production: the code runs in the sandbox, every commit is synced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from bench.databases import database
from bench.engine import CLIENTS, in_parallel
from bench.pipelines import THREE_STEPS, TIMER, WAITING
from bench.server import Server, serving

WARM_RUNS = 200
QUIET_SECONDS = 12.0  # for the memory of a burst to be given back


def measure(kind: str, name: str, n: int) -> Mapping[str, object]:
    """What a peer's program would print. `kind` is one of bench.databases."""
    with database(kind) as url, serving(database_url=url) as server:
        return MEASURES[name](server, n)


def completed(server: Server, n: int) -> Mapping[str, object]:
    _warm(server)
    begun = time.perf_counter()
    _create(server, "three", n)
    server.drained()
    return {"n": n, "seconds": time.perf_counter() - begun}


def create_to_done(server: Server, n: int) -> Mapping[str, object]:
    _warm(server)
    each = []
    for _ in range(n):
        begun = time.perf_counter()
        server.wait(server.start("three"))
        each.append(time.perf_counter() - begun)
    return {"each": each}


def created(server: Server, n: int) -> Mapping[str, object]:
    _warm(server)
    begun = time.perf_counter()
    _create(server, "three", n)
    seconds = time.perf_counter() - begun
    server.drained()
    return {"n": n, "seconds": seconds}


def event_to_done(server: Server, n: int) -> Mapping[str, object]:
    server.create_repository("waiting", WAITING)
    each = []
    for _ in range(n):
        run_id = server.start("waiting")
        server.wait(run_id, "waiting")
        time.sleep(0.05)
        begun = time.perf_counter()
        server.http.post(f"/api/v1/runs/{run_id}/events/go", json=1).raise_for_status()
        server.wait(run_id)
        each.append(time.perf_counter() - begun)
    return {"each": each}


def timers(server: Server, n: int) -> Mapping[str, object]:
    server.create_repository("timer", TIMER)
    due = time.time() + 10 + n / 150
    server.start_many("timer", n, params={"due": due})
    server.drained()
    if time.time() > due:
        raise TimeoutError("it took too long until all slept")
    time.sleep(max(0.0, due - time.time()))
    while server.count("waiting", "queued", "running"):
        time.sleep(0.02)
    return {"n": n, "seconds": time.time() - due}


def waiting(server: Server, n: int) -> Mapping[str, object]:
    server.create_repository("waiting", WAITING)
    _asleep(server, WARM_RUNS)
    before = server.memory_bytes()
    _asleep(server, n)
    return {"n": n, "mib": (server.memory_bytes() - before) / (1 << 20)}


def _asleep(server: Server, n: int) -> None:
    _create(server, "waiting", n)
    server.drained(poll=0.2)
    time.sleep(QUIET_SECONDS)


def _warm(server: Server) -> None:
    server.create_repository("three", THREE_STEPS)
    _create(server, "three", WARM_RUNS)
    server.drained()


def _create(server: Server, name: str, n: int) -> None:
    in_parallel(CLIENTS, lambda: server.start_many(name, n // CLIENTS))


MEASURES: dict[str, Callable[[Server, int], Mapping[str, object]]] = {
    "completed": completed,
    "create_to_done": create_to_done,
    "created": created,
    "event_to_done": event_to_done,
    "timers": timers,
    "waiting": waiting,
}
