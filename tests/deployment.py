"""A whole deployment in one process, on real parts and a clock that the test drives.

Database, objects, git store, sandbox, runner and worker are the real ones; only time is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci_platform.app import Platform, open_platform, runner_of
from ci_platform.commands import StartRun
from ci_platform.config import Config
from ci_platform.engine import steps
from ci_platform.engine.fold import fold
from ci_platform.identity import console
from ci_platform.model import Actor, Entry, Run, RunId, Step, User, WorkerId
from ci_platform.ports.repositories import FileChange
from ci_platform.server.processes import worker_tools
from ci_platform.testing import FakeClock
from ci_platform.worker import Worker
from tests.wakers import check_nobody_is_forgotten

OWNER = console("owner")
TURNS_MAX = 1000  # of the worker until a run must rest
REPOSITORY = ("acme", "app")


@dataclass(frozen=True, slots=True)
class Deployment:
    """One repository `acme/app` on a platform, with a worker that works when told to."""

    platform: Platform
    worker: Worker
    clock: FakeClock

    def push(self, files: Mapping[str, str], *, branch: str = "main") -> str:
        """Commit files on a branch, as a push would. Returns the commit."""
        return self.platform.commands.repositories.commit_files(
            OWNER,
            *REPOSITORY,
            branch=branch,
            changes=[FileChange(path, text.encode()) for path, text in files.items()],
            message="a change",
        )

    def start(self, params: Any = None, **what: Any) -> RunId:
        request = StartRun(params={} if params is None else params, **what)
        return self.platform.commands.runs.start(OWNER, *REPOSITORY, request).id

    def work(self) -> None:
        """Let the worker work until nothing is due."""
        for _ in range(TURNS_MAX):
            if self.worker.run_once() == 0:
                return
        raise AssertionError(f"still busy after {TURNS_MAX} turns")

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.work()

    def run(self, run_id: RunId) -> Run:
        return self.platform.store.runs.get(run_id)

    def journal(self, run_id: RunId) -> list[Entry]:
        return list(self.platform.store.runs.journal(run_id))

    def steps(self, run_id: RunId) -> dict[str, Step]:
        view = fold(self.run(run_id), self.journal(run_id))
        return {str(step.key): step for step in steps(view)}

    def children(self, run_id: RunId, prefix: str = "") -> dict[str, str]:
        """The state of each run that a run has started, by step, and of those that these have."""
        found: dict[str, str] = {}
        for one in self.platform.queries.run_page(OWNER, run_id).children:
            found[prefix + one.step] = one.run.state.value
            found |= self.children(one.run.id, f"{prefix}{one.step}/")
        return found

    def seen(self, run_id: RunId) -> str:
        """All that people get to see of a run's steps and journal, as one text."""
        queries = self.platform.queries
        entries = queries.journal(OWNER, run_id, limit=5_000)
        return repr((queries.run_page(OWNER, run_id).steps, entries))

    def log(self, run_id: RunId, step: str = "$run") -> list[str]:
        return [line.text for line in self.platform.store.logs.read(run_id, step)]

    def person(self, name: str) -> Actor:
        """A user of this name who may answer gates and read everything."""
        found = self.platform.store.identity.user_by_name(name)
        user: User = (
            found[0]
            if found is not None
            else self.platform.store.identity.create_user(name, None, admin=True)
        )
        return Actor(kind="user", id=user.id, name=user.name, admin=True)


@contextlib.contextmanager
def deployed(data: Path, *, cache: Path, **settings: Any) -> Iterator[Deployment]:
    """A deployment in `data`; opened a second time it goes on where it was left."""
    clock = FakeClock()
    config = Config(data=data, cache=cache, url="http://localhost", **settings)
    platform = open_platform(config, sandboxes=1, clock=clock)
    runner = runner_of(platform)
    worker = Worker(worker_tools(platform, runner, WorkerId("test:worker")))
    try:
        if not platform.repositories.list():
            platform.commands.repositories.create(OWNER, *REPOSITORY)
        yield Deployment(platform, worker, clock)
        check_nobody_is_forgotten(platform.store, clock.now_ms())
    finally:
        runner.close()
        platform.close()
