"""`python -m bench [NAME ...]`: run the named benchmarks, or all, and print one table."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from bench.browser import log_latency
from bench.git import git_store
from bench.measure import Result, latency, rate, show
from bench.sandbox import cold_start
from bench.server import Server, connect, launch, serving

THREE_STEPS = """
from pipelines import Pipeline, on_manual

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
        a = await step.do("a", lambda: 1)
        b = await step.do("b", lambda: a + 1)
        return await step.do("c", lambda: b + 1)
"""
MANY_STEPS = """
from pipelines import Pipeline, on_manual

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
        for n in range(200):
            await step.do("one", lambda: n)
"""
WAITING = """
from pipelines import Pipeline, on_manual

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
        got = await step.wait_for_event("go", type="go", timeout="30 days")
        return got.payload
"""
GATE = """
from pipelines import Pipeline, on_manual

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
        await step.approval("gate", allow_self=True)
        return await step.do("after", lambda: 1)
"""
PUSHED = """
from pipelines import Pipeline, on_push

class Bench(Pipeline):
    triggers = [on_push()]
    async def run(self, event, step):
        return await step.do("first", lambda: 1)
"""
TIMER = """
from pipelines import Pipeline, on_manual

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
        await step.sleep_until("due", event.params["due"])
"""


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
        for _ in range(5):
            server.wait(server.start("three"))
        whole = []
        for _ in range(100):
            before = time.perf_counter()
            server.wait(server.start("three"), poll=0)
            whole.append(time.perf_counter() - before)
        overhead = []
        for _ in range(5):
            entries = server.journal(server.wait(server.start("many"))["id"])
            passed = [e["at_ms"] for e in entries if e["kind"] == "step_passed"]
            overhead.append((passed[-1] - passed[0]) / 1e3 / (len(passed) - 1))
    return [
        latency("create to done, one 3-step run", whole, bar_ms=10),
        latency("overhead of one journaled step, of 200 in a row", overhead, bar_ms=2.5),
    ]


def throughput() -> list[Result]:
    with serving() as server:
        server.create_repository("three", THREE_STEPS)
        server.create_repository("waiting", WAITING)
        server.wait(server.start("three"))
        before = time.perf_counter()
        in_parallel(4, lambda: server.start_many("three", 1000))
        created = 4000 / (time.perf_counter() - before)
        while backlog(server):
            time.sleep(0.05)
        completed = 4000 / (time.perf_counter() - before)
    return [
        rate("runs created a second, in batches of 100, workers busy", created, bar=3000),
        rate("3-step runs completed a second, creation included", completed, bar=500),
    ]


def backlog(server: Server) -> int:
    states = server.http.get("/api/v1/system").json()["runs"]
    return int(states.get("queued", 0)) + int(states.get("running", 0))


def in_parallel(count: int, work: Callable[[], None]) -> None:
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
        for _ in range(100):
            run_id = server.start("waiting")
            server.wait(run_id, "waiting")
            before = time.perf_counter()
            server.http.post(f"/api/v1/runs/{run_id}/events/go", json=1).raise_for_status()
            server.wait(run_id, poll=0)
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


def waiting(count: int = 50_000) -> list[Result]:
    """Memory, CPU and disk of 50,000 waiting runs, and how soon a killed server serves again."""
    with serving() as server:
        server.create_repository("waiting", WAITING)
        server.wait(server.start("waiting"), "waiting")
        idle = server.memory_bytes()
        empty = disk_bytes(server.data)
        in_parallel(2, lambda: server.start_many("waiting", count // 2))
        while backlog(server):
            time.sleep(0.2)
        time.sleep(2)
        grown = (server.memory_bytes() - idle) / (1 << 20)
        row_bytes = (disk_bytes(server.data) - empty) / count
        cpu, seconds = server.cpu_seconds(), 10.0
        time.sleep(seconds)
        cpu_share = (server.cpu_seconds() - cpu) / seconds * 100
        server.kill()
        before = time.perf_counter()
        process, url = launch(server.data, workers=2)
        ready = time.perf_counter() - before
        again = connect(server.data, process, url, server.token)
        alive = again.http.get("/api/v1/system").json()["runs"]["waiting"]
        process.terminate()
        process.wait()
    assert alive == count + 1, f"{alive} of {count + 1} runs are still waiting"
    return [
        Result(
            f"memory added by {count:,} waiting runs", f"{grown:.0f} MiB", "", "0 MB", grown < 5
        ),
        Result("disk of one waiting run", f"{row_bytes:.0f} B", "", "< 1 KB", row_bytes < 1024),
        Result("CPU while they wait", f"{cpu_share:.2f} % of a core", "", "none", cpu_share < 2),
        Result("serving again after kill -9", f"{ready:.2f} s", "", "< 1 s", ready < 1),
    ]


def disk_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in data.glob("sluice.db*"))


def timers(count: int = 10_000) -> list[Result]:
    with serving() as server:
        server.create_repository("timer", TIMER)
        due = time.time() + 60
        runs = [{"params": {"due": due}} for _ in range(100)]
        for _ in range(count // 100):
            server.http.post(
                "/api/v1/repos/bench/timer/runs/batch", json={"runs": runs}
            ).raise_for_status()
        while backlog(server) and time.time() < due:
            time.sleep(0.2)
        time.sleep(max(0.0, due - time.time()))
        while server.http.get("/api/v1/system").json()["runs"].get("waiting", 0) or backlog(server):
            time.sleep(0.05)
        drained = time.time() - due
    return [
        Result(
            f"{count:,} timers due at once, all done",
            f"{drained:.1f} s",
            "",
            "< 15 s",
            drained < 15,
        )
    ]


ALL: dict[str, Callable[[], list[Result]]] = {
    "sandbox": cold_start,
    "push": push_to_first_step,
    "steps": steps,
    "throughput": throughput,
    "events": events,
    "timers": timers,
    "waiting": waiting,
    "browser": log_latency,
    "git": git_store,
}


def main(names: Sequence[str]) -> int:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark is called {unknown[0]!r}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    if shutil.which("git") is None:
        print("the benchmarks need the git client", file=sys.stderr)
        return 2
    results: list[Result] = []
    for name in names or ALL:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            results += ALL[name]()
        except (httpx.HTTPError, TimeoutError, RuntimeError) as error:
            results.append(Result(name, "failed", "", str(error)[:60], False))
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
