"""The scaled deployment: several web and worker processes, as on machines of their own, on one
PostgreSQL and one object store."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.cluster import REPOSITORY, cluster, commit, ended, get, journal, until
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow

RUNS = 24
PIPELINE = """
from pipelines import Pipeline, on_push

class CI(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
        await step.sh("write", "echo $RANDOM-$$ > made.txt; echo said by the command")
        go = await step.wait_for_event("go", type="go")
        read = await step.sh("read", 'echo "size=$(wc -c < made.txt)" >> "$CI_OUTPUT"')
        return [go.payload, int(read.outputs["size"]) > 2]
"""


def test_processes_share_nothing_but_the_database_and_the_objects(
    postgres: PostgresServer, tmp_path: Path, guest_cache: Path
) -> None:
    with (
        postgres.database() as url,
        cluster(tmp_path, cache=guest_cache, database_url=url) as made,
    ):
        webs = [made.web(f"web-{number}") for number in range(2)]
        for number in range(2):
            made.worker(f"worker-{number}")
        with made.client(webs[0]) as one, made.client(webs[1]) as two:
            commit(one, PIPELINE)
            (pushed,) = get(two, f"{REPOSITORY}/runs")["runs"]
            clone(webs[1].url, made.token, tmp_path / "tree")
            ids = [start((one, two)[number % 2], f"run-{number}") for number in range(RUNS)]
            for number, run_id in enumerate([pushed["id"], *ids]):
                other = (two, one)[number % 2]
                until(partial(waiting, other, run_id), "the run waits")
                answer = other.post(f"/api/v1/runs/{run_id}/events/go", json=number)
                assert answer.status_code == 200, answer.text
            workers = set()
            for number, run_id in enumerate([pushed["id"], *ids]):
                run = ended((one, two)[number % 2], run_id)
                assert (run["state"], run["output"]) == ("passed", [number, True]), run
                entries = journal(one, run_id)
                workers |= {e["data"]["worker"] for e in entries if e["kind"] == "run_claimed"}
            assert len(workers) == 2, "one worker did everything"
            listed = get(one, f"{REPOSITORY}/runs")["runs"]
            assert sorted(run["number"] for run in listed) == list(range(1, RUNS + 2))
            lines = get(two, f"/api/v1/runs/{ids[0]}/logs?step=sh:write")["lines"]
            assert "said by the command" in [line["text"] for line in lines]
        assert not list(tmp_path.glob("data*/sluice.db"))
        assert not list(tmp_path.glob("data*/objects"))
        assert any(path.is_file() for path in (tmp_path / "objects").rglob("*"))


def start(http: httpx.Client, run_id: str) -> str:
    answer = http.post(f"{REPOSITORY}/runs", json={"id": run_id, "params": {}})
    assert answer.status_code == 201, answer.text
    return run_id


def waiting(http: httpx.Client, run_id: str) -> bool:
    waits = get(http, f"/api/v1/runs/{run_id}")["waits"]
    return bool([wait["kind"] for wait in waits] == ["wait"])


def clone(url: str, token: str, into: Path) -> None:
    """What one process was given, another one serves."""
    remote = url.replace("://", f"://any:{token}@") + "/acme/app.git"
    subprocess.run(["git", "clone", "-q", remote, str(into)], check=True)
    assert (into / ".ci" / "pipeline.py").read_text() == PIPELINE
