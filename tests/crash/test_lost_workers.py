"""One of three workers is lost in the middle of a run; another one takes over when its lease ends.

The workers are processes of their own that nothing replaces. Which of them is hit, and when, is
decided by the journal: whoever writes the chosen entry.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster import Cluster, Member, cluster, commit, journal, until
from tests.crash.play import PIPELINE, check, drive

LEASE_SECONDS = 3
KILLS = 5  # of one test, at entries drawn by lot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@contextlib.contextmanager
def three_workers(
    root: Path, cache: Path, database_url: str | None
) -> Iterator[tuple[Cluster, httpx.Client]]:
    """Three workers that have executed the scenario once, and the client of a web process."""
    with cluster(root, cache=cache, database_url=database_url, lease_seconds=LEASE_SECONDS) as made:
        web = made.web("web")
        with made.client(web) as http:
            commit(http, PIPELINE)
            for number in range(3):
                made.worker(f"worker-{number}")
            check(http, "calm", drive(http, "calm"))
            yield made, http


def workers(made: Cluster) -> list[Member]:
    return [member for member in made.members if member.name.startswith("worker")]


def test_a_killed_worker_is_replaced_by_another_after_its_lease(
    deployment_url: str | None, seed: int, tmp_path: Path, guest_cache: Path
) -> None:
    lot = random.Random(seed)
    with three_workers(tmp_path, guest_cache, deployment_url) as (made, http):
        last = len(journal(http, "calm"))
        for number, at in enumerate(sorted(lot.sample(range(2, last), KILLS))):
            when = lot.choice(["before", "after"])
            run_id = f"kill-{when}-{at}"
            made.will("kill", run_id, at, when)
            check(http, run_id, drive(http, run_id))
            assert made.done(run_id), f"{run_id}: nobody was killed"
            (dead,) = [member for member in workers(made) if not member.alive]
            assert dead.process.returncode == -9
            made.members.remove(dead)
            dead.end()
            made.worker(f"worker-after-{number}")


@pytest.mark.parametrize("held", ["a body", "a command"])
def test_a_worker_that_slept_past_its_lease_can_write_nothing(
    held: str, deployment_url: str | None, tmp_path: Path, guest_cache: Path
) -> None:
    with three_workers(tmp_path, guest_cache, deployment_url) as (made, http):
        calm = journal(http, "calm")
        step = "first" if held == "a body" else "one"
        passed = next(
            entry["seq"]
            for entry in calm
            if entry["kind"] == "step_passed" and entry["key"]["name"] == step
        )
        made.will("stop", "frozen", passed, "before")
        check(http, "frozen", drive(http, "frozen"))
        (frozen,) = [member for member in workers(made) if member.stopped]
        before = journal(http, "frozen")
        names = [entry["data"]["worker"] for entry in before if entry["kind"] == "run_claimed"]
        assert any(not name.endswith(frozen.name) for name in names), "nobody took over"
        frozen.signal(signal.SIGCONT)
        until(lambda: frozen.said(": let go: "), "the worker sees that it has lost the run")
        assert journal(http, "frozen") == before
        check(http, "later", drive(http, "later"))  # and it is of use again
        assert frozen.alive
