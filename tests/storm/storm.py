"""A storm: users, weather and judges around one server, for a given time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.cluster import cluster
from tests.model.reference import Broken
from tests.storm.judging import found, judge
from tests.storm.people import LIVE, People, Played
from tests.storm.weather import Weather

LEASE_SECONDS = 3
WORKERS = 3
GAP_SECONDS = 1.0  # between two kills, on average
LOOK_SECONDS = 0.1
CALM_SECONDS = 120  # for all that is left to end, once nothing is killed any more
FAULTS_MAX = 5  # that end the storm
TELL_SECONDS = 30


@dataclass(slots=True)
class Outcome:
    ended: Counter[str] = field(default_factory=Counter)  # runs, by state
    killed: Counter[str] = field(default_factory=Counter)  # processes, by kind
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"ended {dict(self.ended)}, killed {dict(self.killed)}, {len(self.faults)} faults"


def storm(
    root: Path,
    *,
    seed: int,
    seconds: float,
    cache: Path,
    database_url: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Play until the time is over, then wait for all that is left to end."""
    outcome = Outcome()
    with cluster(root, cache=cache, database_url=database_url, lease_seconds=LEASE_SECONDS) as made:
        server = made.serve("server", workers=WORKERS)
        with made.client(server) as http:
            http.post("/api/v1/repos", json={"owner": "acme", "name": "app"}).raise_for_status()
            weather = Weather(
                server.process.pid, random.Random(f"{seed} weather"), gap_seconds=GAP_SECONDS
            )
            outcome.killed = weather.killed
            people = People(http, random.Random(f"{seed} people"))
            weather.start()
            try:
                _until(people, http, outcome, time.monotonic() + seconds, tell)
            finally:
                weather.calm()
            tell(f"calm: {outcome}, {len(people.live)} runs left")
            _settle(people, http, outcome)
    return outcome


def _until(
    people: People,
    http: httpx.Client,
    outcome: Outcome,
    end_s: float,
    tell: Callable[[str], None],
) -> None:
    told_s = time.monotonic()
    while time.monotonic() < end_s and len(outcome.faults) < FAULTS_MAX:
        while sum(play.parent is None for play in people.live.values()) < LIVE:
            people.start()
        _look(people, http, outcome)
        if time.monotonic() - told_s > TELL_SECONDS:
            told_s = time.monotonic()
            tell(str(outcome))


def _settle(people: People, http: httpx.Client, outcome: Outcome) -> None:
    end_s = time.monotonic() + CALM_SECONDS
    while people.live and time.monotonic() < end_s:
        _look(people, http, outcome)
    outcome.faults += [f"stuck: {found(http, play)}" for play in people.live.values()]


def _look(people: People, http: httpx.Client, outcome: Outcome) -> None:
    for play, run in people.look():
        outcome.ended[run["state"]] += 1
        try:
            judge(http, play, run)
        except Broken as broken:
            outcome.faults.append(_fault(http, play, broken))
    time.sleep(LOOK_SECONDS)


def _fault(http: httpx.Client, play: Played, broken: Broken) -> str:
    return f"broken: {broken}\n{found(http, play)}"
