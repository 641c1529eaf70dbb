"""Workers are killed at every write of a journal, many runs at once, and all end as they should.

Three workers, which a nursery replaces; whoever brings a run to the entry that is its turn dies by
SIGKILL, right before or right after that transaction. Its runs and commands go to the others when
the leases have run out. Each entry is struck on one of the databases, before or after, as the lot
has it; CRASH_ENTRIES=all strikes all of them on both.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster import INJECT, Cluster, Member, cluster, commit, journal
from tests.crash.play import PIPELINE
from tests.crash.plays import Play, play

LEASE_SECONDS = 2
WORKERS = 3
AT_ONCE = 4  # runs
PIPELINES = ("Scenario", "Undone", "Stored")
ALL = os.environ.get("CRASH_ENTRIES") == "all"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 if ALL else 600)]


@contextmanager
def nursery(made: Cluster) -> Iterator[None]:
    """Workers that are replaced at once."""
    data = made.root / ("data" if made.database_url is None else "data-nursery")
    log = made.root / "nursery.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery", str(WORKERS), str(data)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={
                **made._environment(),
                "PYTHONPATH": INJECT,
                "SLUICE_CRASH_PLAN": str(made.plan),
                "SLUICE_SANDBOXES_MAX": "1",  # each of them has to be started again
            },
        )
    made.members.append(Member("nursery", log, process))
    yield
    assert process.poll() is None, log.read_text()


def test_runs_survive_the_death_of_their_worker_at_any_write(
    deployment_url: str | None, seed: int, tmp_path: Path, guest_cache: Path
) -> None:
    with cluster(
        tmp_path, cache=guest_cache, database_url=deployment_url, lease_seconds=LEASE_SECONDS
    ) as made:
        web = made.web("web")
        with made.client(web) as http, nursery(made):
            commit(http, PIPELINE)
            cuts: list[Play] = []
            for pipeline in PIPELINES:
                calm = Play(pipeline, 1, "calm")
                play(http, calm)
                last = len(journal(http, calm.id))
                cuts += [Play(pipeline, at) for at in chosen(last, deployment_url is None, seed)]
            strikes(made, cuts, random.Random(seed))
            with ThreadPoolExecutor(AT_ONCE) as users:
                list(users.map(lambda what: play(http, what), cuts))
            left = [what for what in cuts if not made.done(what.id)]
            assert len(left) < len(cuts) / 4, f"hardly anybody was killed: {left}"


def chosen(last: int, sqlite: bool, seed: int) -> Iterator[int]:
    """The entries to strike at: each on one of the databases, or all. A run that is struck may
    have more of them than a calm one, and its end may have come with others."""
    for at in range(2, last):
        if ALL or (at + seed) % 2 == sqlite:
            yield at


def strikes(made: Cluster, cuts: list[Play], lot: random.Random) -> None:
    """Plan a death in each run; and some in those that restart them, and in their children."""
    for what in cuts:
        made.will("kill", what.id, what.number, lot.choice(["before", "after"]))
        if what.restarted:
            made.will("kill", what.again, lot.randrange(9, 13), lot.choice(["before", "after"]))
    for at in (2, 3, 5, 7):
        made.will("kill", "run_", at, lot.choice(["before", "after"]))
