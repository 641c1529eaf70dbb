"""PostgreSQL is killed and started again under load: nothing is lost, and nobody has to help."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ci_platform.model import TERMINAL_STATES
from tests.cluster import REPOSITORY, cluster, commit, ended, get, journal, until
from tests.postgres import PostgresServer, postgres_server

CUTS = 3
RUNS_PER_CUT = 15  # that have been accepted between two cuts
PIPELINE = """
import asyncio
from pipelines import Pipeline, on_manual

class Load(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step):
        first = await step.do("first", lambda: 1)
        await step.sleep("nap", 0.2)
        both = await asyncio.gather(step.do("a", lambda: first + 1), step.do("b", lambda: 3))
        return sum(both)
"""


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that no other test is hurt with."""
    with postgres_server() as server:
        yield server


class Load:
    """Someone who starts runs one after the other, and again when the answer was lost."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.accepted: list[str] = []
        self.refusals: set[str] = set()
        self.surprises: list[str] = []  # that are neither: a bug of ours
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(0.01):
            run_id = f"load-{len(self.accepted)}"
            while not self._accepted(run_id):
                self._stop.wait(0.1)
            self.accepted.append(run_id)

    def _accepted(self, run_id: str) -> bool:
        answer = self._http.post(f"{REPOSITORY}/runs", json={"id": run_id, "params": {}})
        if answer.status_code in (201, 409):  # 409: the answer was lost, the run was not
            return True
        if answer.status_code != 503:
            self.surprises.append(answer.text)
        self.refusals.add(answer.json()["detail"])
        return False

    def more(self, count: int) -> None:
        enough = len(self.accepted) + count
        until(lambda: len(self.accepted) >= enough, "runs are accepted")

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_postgresql_killed_under_load_loses_nothing(
    own_postgres: PostgresServer, tmp_path: Path, guest_cache: Path
) -> None:
    with (
        own_postgres.database() as url,
        cluster(tmp_path, cache=guest_cache, database_url=url, lease_seconds=5) as made,
    ):
        web = made.web("web")
        with made.client(web) as http, made.client(web) as other:
            commit(http, PIPELINE)
            for number in range(2):
                made.worker(f"worker-{number}")
            until(lambda: len(get(http, "/api/v1/system")["workers"]) == 2, "workers are there")
            load = Load(other)
            try:
                for _ in range(CUTS):
                    load.more(RUNS_PER_CUT)
                    own_postgres.kill()
                    time.sleep(0.5)
                    assert http.get("/readyz").status_code == 503
                    assert http.get("/healthz").status_code == 200
                    own_postgres.start()
                    until(lambda: http.get("/readyz").status_code == 200, "it is ready again")
            finally:
                load.end()
            for run_id in load.accepted:
                run = ended(http, run_id)
                assert (run["state"], run["output"]) == ("passed", 5), run
                entries = journal(http, run_id)
                assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
            listed = get(http, f"{REPOSITORY}/runs")["runs"]
            assert {run["state"] for run in listed} <= TERMINAL_STATES
        assert all(member.alive for member in made.members), "a process needed to be replaced"
    assert load.surprises == []
    assert load.refusals, "nobody noticed"
    assert all("database" in detail for detail in load.refusals)
