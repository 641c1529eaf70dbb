"""A deployment of separate processes: `sluice web` and `sluice worker`, any number of each, or
`sluice serve`, which has both.

On SQLite they share a data directory. On PostgreSQL each has a directory of its own, as on machines
of their own, and they share the database and an object store: a directory unless told otherwise.
Nothing replaces a process that dies, and each keeps its log in a file. Workers do what a plan says
at chosen journal entries, see crash/inject.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ci_platform.cli.guest import build_guest
from ci_platform.model import TERMINAL_STATES

INJECT = os.pathsep.join(map(str, (Path(__file__).parent / "crash/inject", Path.cwd())))
START_SECONDS = 60
STOP_SECONDS = 40
RUN_SECONDS = 60
LOOK_SECONDS = 0.02
REPOSITORY = "/api/v1/repos/acme/app"


def until(found: Callable[[], bool], what: str, *, seconds: float = RUN_SECONDS) -> None:
    """Wait for something that other processes do."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(LOOK_SECONDS)


@dataclass(slots=True)
class Member:
    """One process of the cluster."""

    name: str
    log: Path
    process: subprocess.Popen[str]
    url: str = ""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def said(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8")

    @property
    def stopped(self) -> bool:
        """By a SIGSTOP."""
        status = Path(f"/proc/{self.process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        self.process.communicate(timeout=STOP_SECONDS)


@dataclass(slots=True)
class Cluster:
    root: Path
    cache: Path
    database_url: str | None
    lease_seconds: int
    objects_url: str | None = None
    members: list[Member] = field(default_factory=list)
    token: str = ""

    @property
    def plan(self) -> Path:
        return self.root / "plan"

    def will(self, what: str, run_id: str, at: int, when: str = "after") -> None:
        """The worker that brings the run to entry `at` or beyond does it, right before or after:
        `kill` or `stop` itself, once."""
        self.plan.mkdir(exist_ok=True)
        (self.plan / f"{run_id}.{at}.{when}").write_text(what)

    def will_at_layer(self, what: str, where: str) -> None:
        """The next worker that comes there with a layer does it, once: see crash/inject."""
        self.plan.mkdir(exist_ok=True)
        (self.plan / f"layer.{where}").write_text(what)

    def done(self, run_id: str) -> bool:
        """Whether what was planned for the run has happened."""
        return not list(self.plan.glob(f"{run_id}.*"))

    def worker(self, name: str, *options: str) -> Member:
        return self._start(name, "worker", "--name", name, *options)

    def web(self, name: str) -> Member:
        member = self._start(name, "web", "--port", "0")
        assert member.process.stdout is not None
        member.url = member.process.stdout.readline().strip()
        assert member.url.startswith("http"), member.log.read_text()
        return member

    def serve(self, name: str, *, workers: int) -> Member:
        """A whole `sluice serve`, which replaces those of its processes that die."""
        member = self._start(name, "serve", "--port", "0", "--workers", str(workers))
        assert member.process.stdout is not None
        line = member.process.stdout.readline()
        assert "http" in line, member.log.read_text()
        member.url = line[line.index("http") :].split()[0].rstrip("/")
        return member

    def client(self, web: Member) -> httpx.Client:
        if not self.token:
            self.token = self.cli("token", "create", "--name", "crash", "--scope", "admin")
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=web.url, headers=headers, timeout=30)

    def cli(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command("cli"), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=self._environment(),
        )
        return done.stdout.strip()

    def _start(self, name: str, *arguments: str) -> Member:
        log = self.root / f"{name}.log"
        environment = self._environment()
        if arguments[0] == "worker":
            environment |= {"PYTHONPATH": INJECT, "SLUICE_CRASH_PLAN": str(self.plan)}
        with log.open("a") as errors:
            process = subprocess.Popen(
                [*self._command(name), *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        member = Member(name, log, process)
        self.members.append(member)
        return member

    def _command(self, name: str) -> list[str]:
        data = self.root / ("data" if self.database_url is None else f"data-{name}")
        return [sys.executable, "-m", "ci_platform.cli", "--data", str(data)]

    def _environment(self) -> dict[str, str]:
        ours = {
            "SLUICE_CACHE": str(self.cache),
            "SLUICE_LEASE_SECONDS": str(self.lease_seconds),
            "SLUICE_SECRET_KEY": "0123456789abcdef" * 4,
        }
        if self.database_url is not None:
            objects = self.root / "objects"
            objects.mkdir(exist_ok=True)
            ours |= {
                "SLUICE_DATABASE_URL": self.database_url,
                "SLUICE_OBJECTS_URL": self.objects_url or objects.as_uri(),
            }
        return {**os.environ, **ours}


@contextlib.contextmanager
def cluster(
    root: Path,
    *,
    cache: Path,
    database_url: str | None,
    lease_seconds: int = 30,
    objects_url: str | None = None,
) -> Iterator[Cluster]:
    """Without a process yet; those that were started are ended with it."""
    build_guest(cache)  # not in the first request's time
    made = Cluster(root, cache, database_url, lease_seconds, objects_url)
    try:
        yield made
    finally:
        with contextlib.ExitStack() as ends:
            for member in made.members:
                ends.callback(member.end)


def commit(http: httpx.Client, pipeline: str) -> None:
    """Make the repository acme/app with this pipeline."""
    http.post("/api/v1/repos", json={"owner": "acme", "name": "app"}).raise_for_status()
    change = {"path": ".ci/pipeline.py", "content": pipeline}
    body = {"branch": "main", "message": "the pipeline", "changes": [change]}
    http.post(f"{REPOSITORY}/commits", json=body).raise_for_status()


def get(http: httpx.Client, path: str) -> Any:
    answer = http.get(path)
    answer.raise_for_status()
    return answer.json()


def journal(http: httpx.Client, run_id: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = get(http, f"/api/v1/runs/{run_id}/journal")["entries"]
    return entries


def ended(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """The run, once it has ended."""
    last: dict[str, Any] = {}

    def look() -> bool:
        last.update(get(http, f"/api/v1/runs/{run_id}"))
        return last["state"] in TERMINAL_STATES

    until(look, f"{run_id} ends")
    return last
