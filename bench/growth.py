"""Whether a unit costs the same however much there is: runs in a database, steps in a run.

Each row is one size of a doubling series. The first says what a unit costs, the others how that
compares, which is what the bar is about; and a run with as many steps as are allowed must go on
quickly when its event comes, although its whole journal has to be read and replayed for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.measure import Result, most
from bench.pipelines import HEAD, THREE_STEPS
from bench.server import Server, serving
from bench.waiting import disk_bytes

RUNS = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000]  # in the database
STEPS = [10, 80, 640, 5_000, 10_000]  # in one run, the wait and the last one included
SMALL_STEPS = 2_000  # at least so many are measured, in several runs where these are small
RATIO_MAX = 1.5  # of the cost of a unit, to that where there were fewest
RESUMED_SECONDS = 1.0
WARM_RUNS = 200
LONG = f"""{HEAD}
        for number in range(event.params - 2):
            await step.do("one", lambda: number)
        got = await step.wait_for_event("go", type="go", timeout="30 days")
        return await step.do("after", lambda: got.payload)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one unit, where there are `size` of them."""

    size: int
    cpu_ms: float
    bytes: float


def growth() -> list[Result]:
    return [*_runs(), *_steps()]


def _runs() -> list[Result]:
    costs = []
    with serving() as server:
        server.create_repository("three", THREE_STEPS)
        server.start_many("three", WARM_RUNS)
        server.drained()
        there = WARM_RUNS
        for size in RUNS:
            before, cpu = disk_bytes(server.data, None), server.cpu_seconds()
            server.start_many("three", size - there)
            server.drained()
            used, grown = server.cpu_seconds() - cpu, disk_bytes(server.data, None) - before
            costs.append(Cost(size, used * 1e3 / (size - there), grown / (size - there)))
            there = size
    return _rows("{:,} runs in the database: {} of one more", costs)


def _steps() -> list[Result]:
    """Of each size, so many runs that they have `SMALL_STEPS` steps together."""
    costs = []
    with serving() as server:
        server.create_repository("long", LONG)
        asleep(server, 100, 1)
        for size in STEPS:
            count = max(1, SMALL_STEPS // size)
            before, cpu = disk_bytes(server.data, None), server.cpu_seconds()
            ids = asleep(server, size, count)
            used, grown = server.cpu_seconds() - cpu, disk_bytes(server.data, None) - before
            costs.append(Cost(size, used * 1e3 / size / count, grown / size / count))
        seconds = resumed(server, ids[-1], size)
    row = most(f"a run of {size:,} steps: event to next step", seconds, "s", bar=RESUMED_SECONDS)
    return [*_rows("{:,} steps in a run: {} of one", costs), row]


def asleep(server: Server, steps: int, count: int) -> list[str]:
    """Runs whose steps but the last have ended, and which wait for an event."""
    ids = [server.start("long", params=steps) for _ in range(count)]
    server.drained(poll=0.5)  # which does not look at the runs: large ones are work to show
    return ids


def resumed(server: Server, run_id: str, steps: int) -> float:
    """Send what the run waits for: seconds from that entry of its journal to the next step's."""
    server.http.post(f"/api/v1/runs/{run_id}/events/go", json=1).raise_for_status()
    server.drained()
    page = {"after": 2 * (steps - 2)}  # each step has two
    answer = server.http.get(f"/api/v1/runs/{run_id}/journal", params=page).raise_for_status()
    at_ms = {entry["kind"]: entry["at_ms"] for entry in answer.json()["entries"]}
    return float(at_ms["step_started"] - at_ms["event_received"]) / 1e3


def _rows(what: str, costs: Sequence[Cost]) -> list[Result]:
    first, *others = costs
    rows = [
        Result(what.format(first.size, "CPU"), first.cpu_ms, "ms"),
        Result(what.format(first.size, "disk"), first.bytes, "B"),
    ]
    for cost in others:
        cpu = most(what.format(cost.size, "CPU"), cost.cpu_ms / first.cpu_ms, "x", bar=RATIO_MAX)
        disk = most(what.format(cost.size, "disk"), cost.bytes / first.bytes, "x", bar=RATIO_MAX)
        rows += [
            replace(cpu, note=f"{cost.cpu_ms:.2f} ms"),
            replace(disk, note=f"{cost.bytes:,.0f} B"),
        ]
    return rows
