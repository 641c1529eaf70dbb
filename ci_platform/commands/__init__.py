"""Every change anyone may ask for, one file per family; pages, API, git, CLI and hooks call these.

Each takes the actor first, asks the one authorisation function, decides with the pure engine,
appends with retry, and writes the audit log. Synchronous: async callers use the thread pool.
"""

from __future__ import annotations

from dataclasses import dataclass

from ci_platform.commands.approvals import Approvals, Decided
from ci_platform.commands.family import Family
from ci_platform.commands.hooks import Hooks, NewHook, Receipt
from ci_platform.commands.mirrors import Mirrors
from ci_platform.commands.networks import Networks
from ci_platform.commands.parts import Limits, Parts
from ci_platform.commands.people import NewToken, People
from ci_platform.commands.playground import Playground
from ci_platform.commands.pushes import Pushes
from ci_platform.commands.repositories import Repositories
from ci_platform.commands.runs import NEWEST, Deleted, Runs, StartRun
from ci_platform.commands.schedules import Schedules
from ci_platform.commands.telling import NewSubscription, Telling
from ci_platform.commands.workers import Workers

__all__ = [
    "NEWEST",
    "Approvals",
    "Commands",
    "Decided",
    "Deleted",
    "Family",
    "Hooks",
    "Limits",
    "Mirrors",
    "NewHook",
    "NewSubscription",
    "NewToken",
    "Parts",
    "People",
    "Playground",
    "Pushes",
    "Receipt",
    "Repositories",
    "Runs",
    "StartRun",
    "Telling",
    "Workers",
]


@dataclass(frozen=True, slots=True)
class Commands:
    runs: Runs
    approvals: Approvals
    repositories: Repositories
    pushes: Pushes
    hooks: Hooks
    mirrors: Mirrors
    networks: Networks
    telling: Telling
    people: People
    schedules: Schedules
    playground: Playground
    family: Family
    workers: Workers

    @classmethod
    def over(cls, parts: Parts) -> Commands:
        """All commands over the same parts."""
        pushes = Pushes(parts)
        repositories = Repositories(parts)
        mirrors = Mirrors(parts, repositories)
        return cls(
            runs=Runs(parts),
            approvals=Approvals(parts),
            repositories=repositories,
            pushes=pushes,
            hooks=Hooks(parts, pushes, mirrors),
            mirrors=mirrors,
            networks=Networks(parts),
            telling=Telling(parts),
            people=People(parts),
            schedules=Schedules(parts),
            playground=Playground(parts),
            family=Family(parts),
            workers=Workers(parts),
        )
