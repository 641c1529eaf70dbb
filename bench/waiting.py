"""What waiting costs: memory, disk and processor time of many sleeping runs; and their waking."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import psycopg

from bench.databases import EMBEDDED, SCALED, database
from bench.engine import in_parallel
from bench.measure import Result, most
from bench.pipelines import TIMER, WAITING
from bench.server import Server, connect, launch, serving

RUNS = 50_000
WARM_RUNS = 1_000  # so that what a server keeps anyway, however many runs wait, is there before
QUIET_SECONDS = 15.0  # for a burst's memory to be given back
IDLE_SECONDS = 20.0
TIMERS = 10_000
_PG_BYTES = """
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relkind = 'r'
"""


def waiting(count: int = RUNS) -> list[Result]:
    return [row for kind in (EMBEDDED, SCALED) for row in _waiting(kind, count)]


def _waiting(kind: str, count: int) -> list[Result]:
    with database(kind) as url, serving(database_url=url) as server:
        server.create_repository("waiting", WAITING)
        sleep(server, WARM_RUNS)
        before, empty = server.memory_bytes(), disk_bytes(server.data, url)
        started = time.perf_counter()
        sleep(server, count)
        asleep = time.perf_counter() - started - QUIET_SECONDS
        grown = (server.memory_bytes() - before) / (1 << 20)
        each = (disk_bytes(server.data, url) - empty) / count
        used = server.busy_seconds()
        time.sleep(IDLE_SECONDS)
        share = (server.busy_seconds() - used) / IDLE_SECONDS * 100
        ready = serve_again(server, WARM_RUNS + count, url)
    what = f"{kind}: {count:,} waiting runs: "
    return [
        Result(f"{what}all asleep", asleep, "s", count),
        most(f"{what}memory added", grown, "MiB", bar=5, n=count),
        most(f"{what}disk of each", each, "B", bar=1024, n=count),
        most(f"{what}CPU while they wait", share, "% of a core", bar=1),
        most(f"{what}serving again after kill -9", ready, "s", bar=1),
    ]


def sleep(server: Server, count: int) -> None:
    """Create so many runs that wait, and let the server come to rest."""
    in_parallel(2, lambda: server.start_many("waiting", count // 2))
    server.drained(poll=0.2)
    time.sleep(QUIET_SECONDS)


def serve_again(server: Server, count: int, url: str | None) -> float:
    """Kill every process of the server and start another one: how long until it answers."""
    server.kill()
    before = time.perf_counter()
    process, at = launch(server.data, workers=2, database_url=url)
    with urlopen(f"{at}/readyz"):  # raises for anything but 2xx
        ready = time.perf_counter() - before
    again = connect(server.data, process, at, server.token)  # a client takes 30 ms to make
    try:
        alive = again.count("waiting")
    finally:
        process.terminate()
        process.wait()
    if alive != count:
        raise RuntimeError(f"{alive} of {count} runs are still waiting")
    return ready


def disk_bytes(data: Path, url: str | None) -> int:
    """What the database takes, once its log is written back into it."""
    if url is not None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM")
            row = connection.execute(_PG_BYTES).fetchone()
            return int(row[0]) if row else 0
    with closing(sqlite3.connect(data / "sluice.db")) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return sum(path.stat().st_size for path in data.glob("sluice.db*"))


def timers(count: int = TIMERS) -> list[Result]:
    """Runs that all sleep until the same moment: how long until the last one has ended."""
    with serving() as server:
        server.create_repository("timer", TIMER)
        due = time.time() + max(20.0, count / 200)
        server.start_many("timer", count, params={"due": due})
        server.drained()
        if time.time() > due:
            raise TimeoutError("it took too long until all slept")
        time.sleep(max(0.0, due - time.time()))
        cpu = server.cpu_seconds()
        while server.count("waiting", "queued", "running"):
            time.sleep(0.05)
        done = time.time() - due
        cpu = server.cpu_seconds() - cpu
    bar = 15.0
    what = f"{count:,} timers due at once, all done"
    return [
        Result(
            what, done, "s", count, bar=f"< {bar:g} s", passed=done < bar, cpu_ms=cpu * 1e3 / count
        )
    ]
