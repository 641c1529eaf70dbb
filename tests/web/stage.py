"""A real deployment in a directory, with the pages in front and the test as its worker.

`Stage` does through the engine what a worker would, so that pages meet real journals without a
sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import obstore
from starlette.types import ASGIApp

from ci_platform.commands import Commands, Parts
from ci_platform.engine import (
    Limits,
    Pen,
    accept,
    command_finished,
    fold,
    new_id,
    propose,
    returned,
    settle,
)
from ci_platform.envelope import Dispatch, wrap
from ci_platform.identity import Identity, Sessions
from ci_platform.live import Live
from ci_platform.model import (
    SYSTEM,
    Description,
    EntryKind,
    Json,
    LogLine,
    NewRun,
    Repository,
    Resume,
    Returned,
    Role,
    Run,
    RunId,
    StartStep,
    StepKey,
    StepKind,
    WorkerId,
)
from ci_platform.queries import Queries
from ci_platform.shell import CommandResult
from ci_platform.source import GitPushes, GitRepositories, GitSource
from ci_platform.store import SystemClock, open_store
from git_store import GitStore
from tests.web.browser import PASSWORD
from web import create_web

COMMIT = "8f3ad0c2b7d14e95a6b0c1d2e3f405162738495a"
BASE_URL = "http://ci.example"
WORKER = WorkerId("test/1")
LEASE_MS = 60_000


class Stage:
    """A deployment with one repository, ana/hello, and three people.

    ana is admin, ben writes to it, cleo has no rights there.
    """

    def __init__(self, directory: Path) -> None:
        self.clock = SystemClock()
        self.store = open_store(f"sqlite:///{directory / 'sluice.db'}", key=b"k" * 32)
        self.git = GitStore(
            self.store.engine,
            obstore.store.MemoryStore(),
            directory / "git",
            clock=self.clock.now_ms,
        )
        self.git.create_tables()
        source, repositories = GitSource(self.git), GitRepositories(self.git)
        self.commands = Commands.over(
            Parts(
                store=self.store,
                source=source,
                repositories=repositories,
                outbox=GitPushes(self.git),
                describe=lambda files: Description(),
                clock=self.clock,
                base_url=BASE_URL,
                mirrors=self.store.mirrors,
            )
        )
        mirrors = self.store.mirrors
        self.queries = Queries(self.store, source, repositories, self.clock, mirrors=mirrors)
        sessions = Sessions(b"sixteen bytes or more", self.clock)
        self.identity = Identity(self.store.identity, sessions, self.clock)
        self.live = Live(self.store.bell)
        self.app: ASGIApp = create_web(
            self.commands,
            self.queries,
            self.identity,
            live_streams=self.live,
            base_url=BASE_URL,
        )
        self.setup_secret = self.identity.setup_link() or ""

    def settle_in(self) -> None:
        """Make ana's repository and the three people."""
        self.commands.people.set_up(self.setup_secret, "ana", PASSWORD)
        for name in ("ben", "cleo"):
            self.commands.people.create_user(SYSTEM, name, PASSWORD)
        self.commands.repositories.create(SYSTEM, "ana", "hello")
        self.commands.people.set_role(SYSTEM, "ana", "hello", user="ben", role=Role.WRITER)

    @property
    def repository(self) -> Repository:
        return self.queries.repository(SYSTEM, "ana", "hello")

    def close(self) -> None:
        self.live.close()
        self.git.close()
        self.store.close()

    def run(self, *, message: str = "Greet people", actor: str = "somebody else") -> Run:
        """A queued run, as a push would make it."""
        now_ms = self.clock.now_ms()
        dispatch = Dispatch(self.repository.id, "CI", "refs/heads/main", COMMIT, "pinned")
        user = self.store.identity.user_by_name(actor)
        new = NewRun(
            id=RunId(new_id("run", now_ms)),
            repository_id=self.repository.id,
            pipeline="CI",
            ref="refs/heads/main",
            commit=COMMIT,
            resume=Resume.PINNED,
            trigger="push",
            payload=wrap(dispatch, {"target": "staging"}),
            event={"message": message},
            actor=actor,
            actor_id=user[0].id if user else None,
        )
        return self.store.runs.create([new])[0]

    def work(self, run: Run, *starts: StartStep, output: Json = None, end: bool = False) -> Run:
        """Claim the run, start steps, then suspend it or let it return."""
        claims = {
            one.run.id: one for one in self.store.runs.claim(WORKER, limit=9, lease_ms=60_000)
        }
        claim = claims[run.id]
        view = fold(claim.run, claim.entries)
        now_ms = self.clock.now_ms()
        decision = settle(view, now_ms) + accept(view, starts, now_ms, limits=Limits())
        if end:
            decision += returned(view, Returned(output), now_ms, Limits())
        else:
            pen = Pen(view, now_ms)
            pen.write(EntryKind.RUN_SUSPENDED, {"waits": []})
            decision += pen.decision()
        appended = self.store.runs.append(propose(view, decision, now_ms, fence=claim.run.fence))
        assert appended.applied
        return appended.run

    def print(self, run: Run, step: str, texts: Sequence[str], *, stream: str = "stdout") -> None:
        """Write log lines as a worker does while a command runs."""
        now_ms = self.clock.now_ms()
        first = self.store.logs.last(run.id, step) + 1
        lines = [LogLine(n, now_ms, stream, text) for n, text in enumerate(texts, first)]
        self.store.logs.append(run.id, step, lines)

    def finish_command(self, run: Run, *, exit_code: int = 0) -> Run:
        """End the run's one open command."""
        (operation,) = self.store.operations.claim(WORKER, limit=9, lease_ms=LEASE_MS)
        assert operation.run_id == run.id
        view = fold(self.store.runs.get(run.id), self.store.runs.journal(run.id))
        now_ms = self.clock.now_ms()
        result = CommandResult(
            exit_code=exit_code,
            ended=None,
            detail="",
            outputs={},
            output_tail="",
            layer=None,
            duration_ms=40,
        )
        decision = command_finished(
            view,
            operation,
            result,
            now_ms,
            limits=Limits(),
            collision=lambda layer, other: None,
        )
        assert decision is not None
        appended = self.store.runs.append(propose(view, decision, now_ms))
        assert appended.applied
        return appended.run


def sh(name: str, script: str = "make test", **config: Json) -> StartStep:
    return StartStep(StepKey(StepKind.SH, name), {"script": script, **config})


def approval(name: str, **config: Json) -> StartStep:
    return StartStep(StepKey(StepKind.APPROVAL, name), {"required": 1, **config})
