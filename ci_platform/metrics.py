"""What `/metrics` shows: runs by state, what is due, and how long requests take.

Counts come from the store when they are asked for, so every web process shows the same. Labels
are closed sets: no repository, branch or path. Called by app.py.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ci_platform.model import Json, RunState
from ci_platform.ports import Clock, RunStore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

Scope = MutableMapping[str, Json]
Message = MutableMapping[str, Json]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class RunCollector(Collector):
    """Gauges read from the store at every scrape."""

    def __init__(self, runs: RunStore, clock: Clock) -> None:
        self._runs = runs
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        counts = self._runs.counts()
        states = GaugeMetricFamily("sluice_runs", "Runs that have not ended.", labels=["state"])
        for state in RunState:
            if not state.terminal:
                states.add_metric([state.value], counts.get(state, 0))
        yield states
        due_ms = self._runs.next_ready_ms()
        late_ms = 0 if due_ms is None else max(0, self._clock.now_ms() - due_ms)
        yield GaugeMetricFamily(
            "sluice_due_lag_seconds", "How long the oldest due work has waited.", late_ms / 1000
        )


class Metrics:
    """One registry per web process."""

    def __init__(self, runs: RunStore, clock: Clock) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(RunCollector(runs, clock))
        self._requests = Histogram(
            "sluice_http_request_duration_seconds",
            "From request to end of answer; live streams excepted.",
            ["area", "status"],
            buckets=BUCKETS,
            registry=self._registry,
        )

        self._kept: dict[tuple[str, int], Histogram] = {}  # of areas and statuses: closed sets

    def text(self) -> bytes:
        return generate_latest(self._registry)

    async def measure(
        self, area: str, app: AsgiApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one request with `app` and note how long it took."""
        started = time.perf_counter()
        status, headers = 500, ()

        async def noting(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], message.get("headers", ())
            await send(message)

        try:
            await app(scope, receive, noting)
        finally:
            if not _is_stream(headers):
                self._of(area, status // 100).observe(time.perf_counter() - started)

    def _of(self, area: str, hundreds: int) -> Histogram:
        found = self._kept.get((area, hundreds))
        if found is None:
            found = self._kept[area, hundreds] = self._requests.labels(area, f"{hundreds}xx")
        return found


def _is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False
