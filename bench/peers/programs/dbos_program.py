"""DBOS Transact: a library in this process, on SQLite or PostgreSQL. Nothing isolates its code.

Each measure is done in the way that was quickest: workflows started directly, four at once;
creations through its queue; sleepers as coroutines.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from common import NAP_SECONDS, arguments, resident_mib, tell
from dbos import DBOS

AT_ONCE = 4
STARTERS = 16
_lock = threading.Lock()
_reached = {"asleep": 0, "awake": 0}


def mark(what: str) -> None:
    with _lock:
        _reached[what] += 1


@DBOS.step()
def one(value):
    return value


@DBOS.step()
async def one_async(value):
    return value


@DBOS.workflow()
def three(value):
    return one(one(one(value)))


@DBOS.workflow()
def waits():
    return DBOS.recv("go", timeout_seconds=60)


@DBOS.workflow()
async def sleeps(due):
    await one_async(1)
    mark("asleep")
    await DBOS.sleep_async(max(0.0, due - time.time()))
    await one_async(1)
    mark("awake")


def completed(n: int) -> None:
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda i: DBOS.start_workflow(three, i).get_result(), range(n)))
    tell(n=n, seconds=time.perf_counter() - begun)


def create_to_done(n: int) -> None:
    each = []
    for number in range(n + 10):
        begun = time.perf_counter()
        DBOS.start_workflow(three, number).get_result()
        each.append(time.perf_counter() - begun)
    tell(each=each[10:])


def created(n: int) -> None:
    queue = DBOS.register_queue("creations", worker_concurrency=1)
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda i: queue.enqueue(three, i), range(n)))
    tell(n=n, seconds=time.perf_counter() - begun)


def event_to_done(n: int) -> None:
    each = []
    for number in range(n):
        handle = DBOS.start_workflow(waits)
        time.sleep(0.15 + 0.037 * (number % 11))
        begun = time.perf_counter()
        DBOS.send(handle.workflow_id, "hi", "go")
        handle.get_result()
        each.append(time.perf_counter() - begun)
    tell(each=each)


async def fall_asleep(n: int, due: float) -> None:
    numbers = iter(range(n))

    async def start() -> None:
        for _ in numbers:
            await DBOS.start_workflow_async(sleeps, due)

    await asyncio.gather(*(start() for _ in range(STARTERS)))
    while _reached["asleep"] < n:
        await asyncio.sleep(0.05)


async def timers(n: int) -> None:
    due = time.time() + 5 + n / 60
    await fall_asleep(n, due)
    late = time.time() - due
    if late > 0:
        raise TimeoutError(f"all slept only {late:.0f} s after they were due")
    while _reached["awake"] < n:
        await asyncio.sleep(0.02)
    tell(n=n, seconds=time.time() - due)


async def waiting(n: int) -> None:
    await fall_asleep(50, time.time() + NAP_SECONDS)
    before = resident_mib()
    _reached["asleep"] = 0
    await fall_asleep(n, time.time() + NAP_SECONDS)
    await asyncio.sleep(2)
    tell(n=n, mib=resident_mib() - before)


def main() -> None:
    given = arguments()
    DBOS(
        config={
            "name": "peer",
            "system_database_url": given.url,
            "application_version": "1",
            "executor_id": "local",
            "log_level": "ERROR",
            "console_log_level": "ERROR",
        }
    )
    DBOS.launch()
    work = globals()[given.measure]
    if asyncio.iscoroutinefunction(work):
        asyncio.run(work(given.n))
    else:
        work(given.n)
    os._exit(0)  # its sleepers would hold up an orderly end


if __name__ == "__main__":
    main()
