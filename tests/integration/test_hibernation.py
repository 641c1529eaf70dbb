"""A thousand runs wait for a person: the server holds nothing for them, and loses none."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from ci_platform.cli.client import Client
from ci_platform.cli.watch import Silent, Watch
from tests.integration.test_serve import Serving, serve

pytestmark = pytest.mark.slow

RUNS = 1000
SECONDS = 120
REPOSITORY = "/api/v1/repos/acme/app"
PIPELINE = """
from pipelines import Pipeline, on_manual

class Gate(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step):
        answer = await step.approval("ship", allow_self=True, timeout="30 days")
        return answer.decisions[0].user
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What all processes of a server hold."""

    processes: int
    threads: int
    files: int


def held(server: Serving) -> Held:
    root = psutil.Process(server.process.pid)
    family = [root, *root.children(recursive=True)]
    return Held(
        processes=len(family),
        threads=sum(process.num_threads() for process in family),
        files=sum(process.num_fds() for process in family),
    )


def client(server: Serving, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60)


def start(http: httpx.Client, count: int) -> None:
    for first in range(0, count, 100):
        runs: list[dict[str, object]] = [{} for _ in range(min(100, count - first))]
        http.post(f"{REPOSITORY}/runs/batch", json={"runs": runs}).raise_for_status()


def until_waiting(http: httpx.Client, count: int) -> None:
    end = time.monotonic() + SECONDS
    while (found := http.get("/api/v1/system").json()["runs"]).get("waiting", 0) != count:
        assert time.monotonic() < end, f"not all wait: {found}"
        time.sleep(0.1)


@pytest.mark.timeout(400)
def test_a_thousand_waiting_runs_hold_nothing_and_survive_a_power_cut(
    tmp_path: Path, guest_cache: Path
) -> None:
    with serve(tmp_path / "data") as server:
        token = server.sluice("token", "create", "--name", "t", "--scope", "admin")
        with client(server, token) as http:
            http.post("/api/v1/repos", json={"owner": "acme", "name": "app"})
            change = {"path": ".ci/pipeline.py", "content": PIPELINE}
            body = {"branch": "main", "message": "one", "changes": [change]}
            http.post(f"{REPOSITORY}/commits", json=body).raise_for_status()
            start(http, 100)  # so that every pool has grown to its size
            until_waiting(http, 100)
            before = held(server)
            start(http, RUNS - 100)
            until_waiting(http, RUNS)
            after = held(server)
        assert after.processes <= before.processes
        assert after.threads <= before.threads + 2, (before, after)
        assert after.files <= before.files + 4, (before, after)
        family = [psutil.Process(server.process.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.process.wait()
    with serve(tmp_path / "data") as server, client(server, token) as http:
        until_waiting(http, RUNS)
        run_id = http.get(f"{REPOSITORY}/runs").json()["runs"][0]["id"]
        path = f"/api/v1/runs/{run_id}/approvals/ship"
        http.post(path, json={"decision": "approve"}).raise_for_status()
        until_waiting(http, RUNS - 1)
        with Client.remote(server.url, token) as api:
            ended = Watch(api, run_id, Silent()).until(seconds=SECONDS)
    assert ended["state"] == "passed", ended["error"]
