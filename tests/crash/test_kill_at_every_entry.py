"""The power fails at every single entry of a run's journal, and the run ends the same.

A real server, with all its processes, is killed with SIGKILL right before and right after the
transaction that holds entry 1, 2, 3, ... of a run; it starts again, and must finish that run as
if nothing had happened. The same server is then killed at the next entry of the next run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx
import pytest

from ci_platform.model import TERMINAL_STATES

INJECT = Path(__file__).parent / "inject"
PIPELINE = (Path(__file__).parent / "pipeline.py").read_text()
ENTRIES_MAX = 80  # a run that goes on for longer than this makes no progress
START_SECONDS = 60
RUN_SECONDS = 60
REPOSITORY = "/api/v1/repos/acme/app"


@dataclass(slots=True)
class Server:
    """A `sluice serve` that may be killed at any moment, and started again."""

    data: Path
    log: TextIO
    token: str = ""
    process: subprocess.Popen[str] | None = None
    http: httpx.Client = field(default_factory=httpx.Client)

    def start(self, *, crash: tuple[str, int, str] | None = None) -> None:
        environment = dict(os.environ)
        if crash is not None:
            environment |= {
                "PYTHONPATH": str(INJECT),
                "SLUICE_CRASH_RUN": crash[0],
                "SLUICE_CRASH_AT": str(crash[1]),
                "SLUICE_CRASH_WHEN": crash[2],
            }
        self.process = subprocess.Popen(
            [*self._cli(), "serve", "--port", "0", "--workers", "2"],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url.startswith("http"), f"the server did not start: {url!r}"
        if not self.token:
            self.token = self.cli("token", "create", "--name", "crash", "--scope", "admin")
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=30)

    def cli(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._cli(), *arguments], capture_output=True, text=True, check=True
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

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def journal(self, run_id: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.get(f"/api/v1/runs/{run_id}/journal")["entries"]
        return entries


def drive(server: Server, run_id: str) -> dict[str, Any]:
    """Be the run's user: start it, send its event, approve its gate, until it has ended.

    Each act is repeated if its answer was lost, as a careful client does: it looks first.
    """
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        answer = server.http.get(f"/api/v1/runs/{run_id}")
        if answer.status_code == 404:
            started = server.http.post(f"{REPOSITORY}/runs", json={"id": run_id, "params": {}})
            assert started.status_code in (201, 409), started.text
            continue
        answer.raise_for_status()
        run: dict[str, Any] = answer.json()
        if run["state"] in TERMINAL_STATES:
            return run
        kinds = {entry["kind"] for entry in server.journal(run_id)}
        waits = {wait["kind"] for wait in run["waits"]}
        if "wait" in waits and "event_received" not in kinds:
            server.http.post(f"/api/v1/runs/{run_id}/events/go", json={"n": 1})
        elif "approval" in waits and "approval_decided" not in kinds:
            path = f"/api/v1/runs/{run_id}/approvals/ship"
            server.http.post(path, json={"decision": "approve"})
        time.sleep(0.02)
    raise AssertionError(f"{run_id} has not ended: {json.dumps(run, indent=1)}")


def key_of(entry: dict[str, Any]) -> tuple[str, str, int]:
    key = entry["key"]
    return key["kind"], key["name"], key["occurrence"]


def check(server: Server, run_id: str, run: dict[str, Any]) -> None:
    """What must hold however often the power failed."""
    assert run["state"] == "passed", run["error"]
    assert run["output"] == {"do": [1, 2], "event": {"n": 1}, "lines": "one two"}
    entries = server.journal(run_id)
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    passed = Counter(key_of(e) for e in entries if e["kind"] == "step_passed")
    assert set(passed.values()) == {1}, "a step finished twice"
    assert {name for _, name, _ in passed} == {
        *("first", "second", "one", "two", "nap", "go", "ship", "read"),
    }
    for key in passed:
        of_step = [e["kind"] for e in entries if e["key"] and key_of(e) == key]
        assert of_step[-1] in ("step_passed", "approval_decided"), "executed after it had finished"
        attempts = 1 + of_step.count("attempt_started")
        assert attempts <= 2, f"{key} needed {attempts} attempts for one power cut"
    assert Counter(e["kind"] for e in entries)["event_received"] <= 2
    assert [e["kind"] for e in entries].count("approval_decided") == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["after", "before"])
def test_a_run_survives_a_power_cut_at_each_entry(
    when: str, tmp_path: Path, guest_cache: Path
) -> None:
    with (tmp_path / "serve.log").open("w") as log:
        server = Server(tmp_path / "data", log)
        try:
            server.start()
            server.http.post("/api/v1/repos", json={"owner": "acme", "name": "app"})
            change = {"path": ".ci/pipeline.py", "content": PIPELINE}
            body = {"branch": "main", "message": "the pipeline", "changes": [change]}
            server.http.post(f"{REPOSITORY}/commits", json=body).raise_for_status()
            check(server, "calm", drive(server, "calm"))
            server.stop()
            cuts = play(server, when)
        finally:
            server.stop()
    assert cuts > 15, "the server was never killed"


def play(server: Server, when: str) -> int:
    """Kill at entry 1 of one run, at entry 2 of the next, ... until a run ends before its cut."""
    for at in range(1 if when == "after" else 2, ENTRIES_MAX):
        run_id = f"cut-{at}"
        server.start(crash=(run_id, at, when))
        if at > (1 if when == "after" else 2):
            before = f"cut-{at - 1}"
            check(server, before, drive(server, before))
        try:
            drive(server, run_id)
        except httpx.TransportError:
            server.await_death()
            continue
        check(server, run_id, server.get(f"/api/v1/runs/{run_id}"))
        return at
    raise AssertionError(f"a run has more than {ENTRIES_MAX} entries")
