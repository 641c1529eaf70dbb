"""A real server for the benchmarks, and a repository on it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

START_SECONDS_MAX = 120.0
SCRATCH = Path(__file__).parent.parent / ".bench"  # what benchmarks leave for the next time
LOOK_SECONDS = 0.002
DONE = {"passed", "failed", "errored", "cancelled"}


@dataclass(slots=True)
class Server:
    """A running `sluice serve` and a token that may do everything on it."""

    data: Path
    process: subprocess.Popen[str]
    url: str
    token: str
    http: httpx.Client

    def cli(self, *arguments: str) -> str:
        return run_cli(self.data, *arguments)

    def kill(self) -> None:
        """End every process of the server at once, as a power cut would."""
        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()

    def memory_bytes(self) -> int:
        """Unique memory of all processes of the server."""
        root = psutil.Process(self.process.pid)
        return sum(p.memory_full_info().uss for p in [root, *root.children(recursive=True)])

    def cpu_seconds(self) -> float:
        """What its processes have used, and what those that ended had."""
        root = psutil.Process(self.process.pid)
        times = [p.cpu_times() for p in [root, *root.children(recursive=True)]]
        return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))

    def busy_seconds(self) -> float:
        """What the threads of its processes have used, to the nanosecond: for idle servers, whose
        use is far below what `cpu_seconds` counts in."""
        root = psutil.Process(self.process.pid)
        return sum(_scheduled_ns(p.pid) for p in [root, *root.children(recursive=True)]) / 1e9

    def count(self, *states: str) -> int:
        """How many runs are in one of the states."""
        found = self.http.get("/api/v1/system").json()["runs"]
        return sum(int(found.get(state, 0)) for state in states)

    def drained(self, *, poll: float = 0.05, seconds: float = 900) -> None:
        """Wait until no run is queued or executes."""
        end = time.monotonic() + seconds
        while self.count("queued", "running"):
            if time.monotonic() > end:
                raise TimeoutError(f"runs are still queued after {seconds:g} s")
            time.sleep(poll)

    def create_repository(self, name: str, pipeline: str) -> None:
        """A repository whose main branch holds one pipeline file."""
        self.http.post("/api/v1/repos", json={"owner": "bench", "name": name}).raise_for_status()
        change = {"path": ".ci/pipeline.py", "content": pipeline}
        body = {"branch": "main", "message": "bench", "changes": [change]}
        self.http.post(f"/api/v1/repos/bench/{name}/commits", json=body).raise_for_status()

    def start(self, name: str, params: Any = None) -> str:
        """Create one run; its id."""
        answer = self.http.post(f"/api/v1/repos/bench/{name}/runs", json={"params": params})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def start_many(
        self, name: str, count: int, *, batch: int = 100, params: Any = None
    ) -> list[str]:
        """Create runs in batches; their ids."""
        ids: list[str] = []
        for first in range(0, count, batch):
            runs = [{"params": params} for _ in range(min(batch, count - first))]
            answer = self.http.post(f"/api/v1/repos/bench/{name}/runs/batch", json={"runs": runs})
            answer.raise_for_status()
            ids += [run["id"] for run in answer.json()["runs"]]
        return ids

    def run(self, run_id: str, *, wait: float = 0) -> dict[str, Any]:
        answer = self.http.get(f"/api/v1/runs/{run_id}", params={"wait": wait})
        answer.raise_for_status()
        return dict(answer.json())

    def wait(self, run_id: str, *states: str, seconds: float = 60) -> Any:
        """Wait until the run has ended, as a client does; or, with `states`, look again and again
        until it is in one of them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self.run(run_id, wait=0 if states else min(seconds, 60))
            if run["state"] in (states or DONE):
                return run
            time.sleep(LOOK_SECONDS)
        raise TimeoutError(f"{run_id} is {run['state']} after {seconds} s")

    def journal(self, run_id: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/api/v1/runs/{run_id}/journal")
        answer.raise_for_status()
        return list(answer.json()["entries"])


def _scheduled_ns(pid: int) -> int:
    found = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in found)


def environment(database_url: str | None = None) -> dict[str, str]:
    """That of an installed server, which has its modules compiled, whatever this shell says of it:
    a server that compiles itself at each start takes three times as long to be there."""
    found = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    if database_url is not None:
        found["SLUICE_DATABASE_URL"] = database_url
    return {**found, "PYTHONPYCACHEPREFIX": str(SCRATCH / "pycache")}


_NOT_PASSED_ON = {"PYTHONDONTWRITEBYTECODE"}


def run_cli(data: Path, *arguments: str, database_url: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ci_platform.cli", "--data", str(data), *arguments],
        env=environment(database_url),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def launch(
    data: Path,
    *,
    workers: int,
    database_url: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[str], str]:
    """Start `sluice serve` and wait for the line with its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ci_platform.cli", "--data", str(data), "serve", "--port", "0"]
        + ["--workers", str(workers)],
        env={**environment(database_url), **(settings or {})},
        stdout=subprocess.PIPE,
        stderr=(data.parent / "serve.log").open("a"),
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if "http" not in line:
        said = (data.parent / "serve.log").read_text()
        raise RuntimeError(f"the server did not start: {line!r} {said[-600:]}")
    return process, line[line.index("http") :].split()[0].rstrip("/")


def connect(data: Path, process: subprocess.Popen[str], url: str, token: str) -> Server:
    http = httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=START_SECONDS_MAX
    )
    return Server(data, process, url, token, http)


@contextlib.contextmanager
def serving(
    *,
    workers: int | None = None,
    database_url: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server on a fresh data directory, and that database if not its own; ended with it."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        data = Path(directory) / "data"
        process, url = launch(
            data,
            workers=workers or os.cpu_count() or 1,
            database_url=database_url,
            settings=settings,
        )
        given = ("token", "create", "--name", "bench", "--scope", "admin")
        token = run_cli(data, *given, database_url=database_url)
        server = connect(data, process, url, token)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
