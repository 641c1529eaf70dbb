"""The power fails at an entry of a run's journal, and the run ends the same.

A real server, with all its processes, is killed with SIGKILL right before or right after the
transaction that holds an entry of a run; it starts again, and must finish that run as if nothing
had happened. The same server is then killed at the next entry of the next run. The entries are
drawn by lot, or with CRASH_ENTRIES=all it is each of them in turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import httpx
import pytest

from tests.cluster import INJECT, commit, journal
from tests.crash.play import PIPELINE, check, drive

ENTRIES_MAX = 80  # a run that goes on for longer than this makes no progress
CUTS = 3  # of each kind, where the entries are drawn by lot
ALL = os.environ.get("CRASH_ENTRIES") == "all"  # some 70 starts of a server


@dataclass(slots=True)
class Server:
    """A `sluice serve` that may be killed at any moment, and started again."""

    data: Path
    log: TextIO
    database_url: str | None
    token: str = ""
    process: subprocess.Popen[str] | None = None
    http: httpx.Client = field(default_factory=httpx.Client)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*self._cli(), "serve", "--port", "0", "--workers", "2"],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=self._environment() | {"PYTHONPATH": INJECT, "SLUICE_CRASH_PLAN": str(self.plan)},
        )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url.startswith("http"), f"the server did not start: {url!r}"
        if not self.token:
            self.token = self.cli("token", "create", "--name", "crash", "--scope", "admin")
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=30)

    @property
    def plan(self) -> Path:
        return self.data.with_name("plan")

    def _environment(self) -> dict[str, str]:
        chosen = {} if self.database_url is None else {"SLUICE_DATABASE_URL": self.database_url}
        return {**os.environ, **chosen}

    def cli(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._cli(), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=self._environment(),
        )
        return done.stdout.strip()

    def _cli(self) -> list[str]:
        return [sys.executable, "-m", "ci_platform.cli", "--data", str(self.data)]

    def await_death(self) -> None:
        assert self.process is not None
        assert self.process.wait(timeout=30) == -9
        self._close()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=40)
        self._close()

    def _close(self) -> None:
        self.http.close()
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def serving(directory: Path, database_url: str | None) -> Iterator[Server]:
    """A server with the pipeline, which has executed it once without a power cut."""
    with (directory / "serve.log").open("w") as log:
        server = Server(directory / "data", log, database_url)
        server.plan.mkdir()
        try:
            server.start()
            commit(server.http, PIPELINE)
            check(server.http, "calm", drive(server.http, "calm"))
            yield server
        finally:
            server.stop()


@pytest.mark.slow
@pytest.mark.timeout(3600 if ALL else 900)
def test_a_run_survives_power_cuts(
    deployment_url: str | None, seed: int, tmp_path: Path, guest_cache: Path
) -> None:
    lot = random.Random(seed)
    with serving(tmp_path, deployment_url) as server:
        last = len(journal(server.http, "calm"))
        for when in ("after", "before"):
            entries: Iterable[int] = sorted(lot.sample(range(3, last - 2), CUTS))
            if when == "after":
                entries = [1, *entries, last]  # as it is created, and as it ends
            if ALL:
                entries = range(1 if when == "after" else 2, ENTRIES_MAX)
            assert play(server, when, entries) >= CUTS, "the server was never killed"


def play(server: Server, when: str, entries: Iterable[int]) -> int:
    """Kill at one of the entries in each of several runs, until a run ends before its cut. Returns
    how many cuts there were."""
    cut: list[str] = []
    for at in entries:
        run_id = f"cut-{when}-{at}"
        planned = server.plan / f"{run_id}.{at}.{when}"
        planned.write_text("power")
        with contextlib.suppress(httpx.TransportError):
            check(server.http, run_id, drive(server.http, run_id))
        try:
            planned.unlink()
        except FileNotFoundError:  # it is done, or will be in a moment: the run may have ended
            server.await_death()
            server.start()
            cut.append(run_id)
            check(server.http, run_id, drive(server.http, run_id))
        else:
            check(server.http, run_id, drive(server.http, run_id))  # it ended before its cut
            break
    return len(cut)
