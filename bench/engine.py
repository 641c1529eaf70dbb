"""The engine through its own doors: steps, whole runs, events, approvals, pushes."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Result, latency, rate
from bench.pipelines import GATE, MANY_STEPS, PUSHED, THREE_STEPS, WAITING
from bench.server import serving

RUNS = 4000
CLIENTS = 4


def push_to_first_step() -> list[Result]:
    """A commit pushed by the git client, to the first step's entry in the journal."""
    delays, pushes = [], []
    with serving() as server, tempfile.TemporaryDirectory() as directory:
        server.http.post("/api/v1/repos", json={"owner": "bench", "name": "push"})
        remote = server.url.replace("://", f"://any:{server.token}@") + "/bench/push.git"

        def git(*arguments: str) -> None:
            command = ["git", "-C", directory, "-c", "user.name=b", "-c", "user.email=b@b"]
            subprocess.run([*command, *arguments], check=True, capture_output=True)

        git("init", "-q", "-b", "main")
        (Path(directory) / ".ci").mkdir()
        (Path(directory) / ".ci/pipeline.py").write_text(PUSHED)
        for number in range(1, 41):
            (Path(directory) / "file").write_text(str(number))
            git("add", "-A")
            git("commit", "-qm", str(number))
            before = time.time()
            git("push", "-q", remote, "main")
            returned = time.time()
            pushes.append(returned - before)
            page = server.http.get("/api/v1/repos/bench/push/runs").json()
            run_id = page["runs"][0]["id"]
            server.wait(run_id)
            started = next(e for e in server.journal(run_id) if e["kind"] == "step_started")
            delays.append(max(0.0, started["at_ms"] / 1e3 - returned))
    return [
        latency("git push returned to first step started", delays, bar_ms=150, p99_ms=1000),
        latency("git push itself, describing the pipeline included", pushes, bar_ms=1000),
    ]


def steps() -> list[Result]:
    with serving() as server:
        server.create_repository("three", THREE_STEPS)
        server.create_repository("many", MANY_STEPS)
        for _ in range(20):
            server.wait(server.start("three"))
        whole = []
        cpu = server.cpu_seconds()
        for _ in range(200):
            before = time.perf_counter()
            server.wait(server.start("three"))
            whole.append(time.perf_counter() - before)
        cpu = server.cpu_seconds() - cpu
        overhead = []
        for _ in range(5):
            entries = server.journal(server.wait(server.start("many"))["id"])
            passed = [e["at_ms"] for e in entries if e["kind"] == "step_passed"]
            overhead.append((passed[-1] - passed[0]) / 1e3 / (len(passed) - 1))
    return [
        latency("create to done, one 3-step run", whole, bar_ms=10, cpu_seconds=cpu),
        latency("overhead of one journaled step, of 200 in a row", overhead, bar_ms=2.5),
    ]


def throughput() -> list[Result]:
    with serving() as server:
        server.create_repository("three", THREE_STEPS)
        server.start_many("three", 200)
        server.drained()
        cpu, before = server.cpu_seconds(), time.perf_counter()
        in_parallel(CLIENTS, lambda: server.start_many("three", RUNS // CLIENTS))
        created = time.perf_counter() - before
        server.drained()
        completed = time.perf_counter() - before
        cpu = server.cpu_seconds() - cpu
    return [
        rate("runs created, in batches of 100, workers busy", RUNS, created, bar=3000),
        rate("3-step runs completed, creation included", RUNS, completed, bar=500, cpu_seconds=cpu),
    ]


def in_parallel(count: int, work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def events() -> list[Result]:
    with serving() as server:
        server.create_repository("waiting", WAITING)
        server.create_repository("gate", GATE)
        sent, approved = [], []
        for _ in range(200):
            run_id = server.start("waiting")
            server.wait(run_id, "waiting")
            before = time.perf_counter()
            server.http.post(f"/api/v1/runs/{run_id}/events/go", json=1).raise_for_status()
            server.wait(run_id)
            sent.append(time.perf_counter() - before)
        for _ in range(50):
            run_id = server.start("gate")
            server.wait(run_id, "waiting")
            body = {"decision": "approve"}
            server.http.post(f"/api/v1/runs/{run_id}/approvals/gate", json=body).raise_for_status()
            server.wait(run_id)
            entries = server.journal(run_id)
            decided = next(e for e in entries if e["kind"] == "approval_decided")
            after = next(
                e for e in entries if e["seq"] > decided["seq"] and e["kind"] == "step_started"
            )
            approved.append((after["at_ms"] - decided["at_ms"]) / 1e3)
    return [
        latency("event sent to run done", sent, bar_ms=7, p99_ms=30),
        latency("approved to next step started", approved, bar_ms=100),
    ]
