"""Everything in front of the workers, over a real SQLite file and a real git store.

Only what pipeline code would say is made up: `FakeSandbox` describes files by their first line, and
`Front.play` stands in for a worker. The clock is driven by the test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import obstore.store
from fastapi import FastAPI

import git_store
from ci_platform.api import create_api
from ci_platform.commands import Commands, Parts
from ci_platform.engine.accept import accept
from ci_platform.engine.decision import Decision, Pen, propose
from ci_platform.engine.endings import raised, returned
from ci_platform.engine.fold import fold
from ci_platform.engine.limits import Limits as EngineLimits
from ci_platform.errors import InvalidRequest
from ci_platform.git_door import PushListener, record
from ci_platform.identity import Identity, Scope, Sessions
from ci_platform.live import Live
from ci_platform.model import (
    SYSTEM,
    Description,
    EntryKind,
    ErrorInfo,
    Json,
    LogLine,
    PipelineDescription,
    Raised,
    Repository,
    Resume,
    Returned,
    Role,
    Run,
    RunId,
    SourceFiles,
    StartStep,
    StepKey,
    StepKind,
    Trigger,
    User,
    WorkerId,
)
from ci_platform.outgoing import Outgoing
from ci_platform.ports import Claim, RunFilter
from ci_platform.ports.hooks import Hook
from ci_platform.ports.repositories import FileChange
from ci_platform.queries import Queries
from ci_platform.source import GitPushes, GitRepositories, GitSource, push_of
from ci_platform.store import SqlStore, open_store
from ci_platform.webhooks import Errands, create_webhooks

NOW_MS = 1_790_000_000_000
BASE_URL = "http://sluice.test"
PASSWORD = "correct horse"
APPROVAL: dict[str, Json] = {
    "approvers": [],
    "required": 1,
    "allow_self": False,
    "form": None,
    "timeout_ms": 604_800_000,
    "environment": None,
}


@dataclass(slots=True)
class FakeClock:
    at_ms: int = NOW_MS

    def now_ms(self) -> int:
        return self.at_ms

    def advance(self, seconds: float) -> None:
        self.at_ms += int(seconds * 1000)


def pipeline_file(*pipelines: dict[str, Json]) -> str:
    """A file of which the fake sandbox says that it declares these."""
    return "# " + json.dumps(pipelines) + "\n"


PUSHED = pipeline_file({"name": "CI", "triggers": [{"kind": "push"}, {"kind": "manual"}]})
BROKEN = "def run(:\n"


@dataclass(slots=True)
class FakeSandbox:
    """Reads declarations from a comment; anything else is a syntax error."""

    asked: int = 0
    broken: bool = False

    def describe(self, source: SourceFiles) -> Description:
        self.asked += 1
        if self.broken:
            raise RuntimeError("the process dies here")
        text = source.files[".ci/pipeline.py"]
        if not text.startswith("# "):
            traceback = f'  File ".ci/pipeline.py", line 1\n    {text}'
            return Description(error=ErrorInfo("SyntaxError", "invalid syntax", traceback))
        return Description(tuple(_described(one) for one in json.loads(text[2:])))


def _described(declared: dict[str, Json]) -> PipelineDescription:
    triggers = tuple(_trigger(one) for one in declared.get("triggers", []))
    resume = Resume(declared.get("resume", "pinned"))
    return PipelineDescription(
        declared["name"], triggers, resume, concurrency=declared.get("concurrency")
    )


def _trigger(declared: Json) -> Trigger:
    return Trigger(
        kind=declared["kind"],
        branches=tuple(declared.get("branches", ())),
        tags=tuple(declared.get("tags", ())),
        paths=tuple(declared.get("paths", ())),
        inputs=declared.get("inputs", {}),
        cron=declared.get("cron"),
        timezone=declared.get("timezone"),
    )


@dataclass(slots=True)
class Remotes:
    """What can be fetched: the git store's own fetch is tested with real remotes elsewhere."""

    fetched: list[tuple[str, str, str]] = field(default_factory=list)
    broken: str | None = None


class SourceWithRemotes(GitSource):
    def __init__(self, store: git_store.GitStore, remotes: Remotes) -> None:
        super().__init__(store, bytes_max=100_000)
        self._remotes = remotes

    def fetch(self, repository_id: str, url: str, commit: str, ref: str) -> None:
        if self._remotes.broken is not None:
            raise InvalidRequest(self._remotes.broken, field="remote_url")
        self._remotes.fetched.append((url, commit, ref))


class Front:
    """Store, git, commands, queries and the API, with what tests ask of them."""

    def __init__(self, directory: Path, *, private_remotes: bool | None = None) -> None:
        """`private_remotes` given: commits of webhooks are really fetched."""
        self.clock = FakeClock()
        self.store: SqlStore = open_store(
            f"sqlite:///{directory}/sluice.db", clock=self.clock, key=b"k" * 32
        )
        self.git = git_store.GitStore(
            self.store.engine,
            obstore.store.MemoryStore(),
            directory / "git",
            clock=self.clock.now_ms,
            record=record,
        )
        self.git.create_tables()
        self.sandbox = FakeSandbox()
        self.remotes = Remotes()
        source = (
            SourceWithRemotes(self.git, self.remotes)
            if private_remotes is None
            else GitSource(self.git, allow_private_remotes=private_remotes)
        )
        repositories = GitRepositories(self.git, allow_private_remotes=private_remotes or False)
        self.parts = Parts(
            store=self.store,
            source=source,
            repositories=repositories,
            outbox=GitPushes(self.git),
            describe=self.sandbox.describe,
            clock=self.clock,
            base_url=BASE_URL,
            mirrors=self.store.mirrors,
            notices=self.store.notices,
            post=Outgoing(allow_private=private_remotes or False),
        )
        self.commands = Commands.over(self.parts)
        self.queries = Queries(self.store, source, repositories, self.clock)
        self.identity = Identity(self.store.identity, Sessions(b"s" * 32, self.clock), self.clock)
        self.live = Live(self.store.bell)
        self.errands = Errands(self.commands)
        self.said: list[str] = []
        self.git.listen(self)

    def close(self) -> None:
        self.live.close()
        self.git.close()
        self.store.close()

    # --- git_store.PushListener ---

    def before(self, push: git_store.Push) -> None:
        PushListener(self.commands).before(push)

    def after(self, event: git_store.PushEvent, say: Any) -> None:
        self.said = self.commands.pushes.received(push_of(event))

    # --- the API ---

    def app(self, **given: Any) -> FastAPI:
        api = create_api(self.commands, self.queries, self.identity, self.live, **given)
        api.include_router(create_webhooks(self.commands, self.errands))
        return api

    @cached_property
    def usual_app(self) -> FastAPI:
        return self.app()

    def client(self, token: str | None = None, **given: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        app = self.app(**given) if given else self.usual_app
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers)

    # --- people ---

    def user(self, name: str, *, admin: bool = False) -> User:
        return self.store.identity.create_user(name, None, admin=admin)

    def role(self, user: User, repository: Repository, role: Role) -> None:
        self.store.identity.set_role(user.id, repository.id, role)

    def token(
        self, user: User | None = None, *scopes: Scope, repository: Repository | None = None
    ) -> str:
        made = self.commands.people.create_token(
            SYSTEM,
            "test",
            list(scopes or (Scope.ADMIN,)),
            user=None if user is None else user.name,
            repository=None if repository is None else repository.full_name,
        )
        return made.secret

    # --- repositories and runs ---

    def repository(self, name: str = "widget", pipeline: str | None = PUSHED) -> Repository:
        made = self.commands.repositories.create(SYSTEM, "acme", name)
        if pipeline is not None:
            self.push(made, {".ci/pipeline.py": pipeline})
        return made

    def push(
        self,
        repository: Repository,
        files: Mapping[str, str | None],
        *,
        branch: str = "main",
        message: str = "change",
        actor: Any = SYSTEM,
    ) -> str:
        changes = [
            FileChange(path, None if text is None else text.encode())
            for path, text in files.items()
        ]
        return self.commands.repositories.commit_files(
            actor,
            repository.owner,
            repository.name,
            branch=branch,
            changes=changes,
            message=message,
        )

    def runs(self, repository: Repository) -> Sequence[Run]:
        return self.queries.runs(SYSTEM, repository.owner, repository.name, which=RunFilter()).runs

    def hook(self, repository: Repository, secret: str = "It's a Secret to Everybody") -> Hook:
        made = self.commands.hooks.create(
            SYSTEM,
            repository.owner,
            repository.name,
            remote_url="https://forge.test/acme/widget.git",
            secret=secret,
        )
        return made.hook

    # --- instead of a worker ---

    def play(self, run_id: str, *commands: StartStep) -> Run:
        """Claim the run, let its code ask for this, and suspend it."""
        return self._activate(run_id, commands, None)

    def finish(self, run_id: str, output: Json = None) -> Run:
        """Claim the run and let its code return."""
        return self._activate(run_id, (), Returned(output))

    def fail(self, run_id: str) -> Run:
        """Claim the run and let its code raise."""
        return self._activate(run_id, (), Raised(ErrorInfo("ValueError", "no")))

    def claim(self) -> Sequence[Claim]:
        """Take everything that is due, and hold it."""
        return self.store.runs.claim(WorkerId("w"), limit=100, lease_ms=30_000)

    def wait_for(self, run_id: str, type: str) -> Run:
        config = {"type": type, "timeout_ms": 3_600_000}
        return self.play(run_id, StartStep(StepKey(StepKind.WAIT, f"for {type}"), config))

    def approval(self, run_id: str, name: str = "deploy", **spec: Json) -> Run:
        key = StepKey(StepKind.APPROVAL, name)
        return self.play(run_id, StartStep(key, {**APPROVAL, **spec}))

    def print(self, run_id: str, step: str, *texts: str) -> None:
        first = self.store.logs.last(RunId(run_id), step) + 1
        lines = [
            LogLine(number, self.clock.now_ms(), "stdout", text)
            for number, text in enumerate(texts, first)
        ]
        self.store.logs.append(RunId(run_id), step, lines)

    def _activate(
        self, run_id: str, commands: Sequence[StartStep], outcome: Returned | Raised | None
    ) -> Run:
        now_ms, limits = self.clock.now_ms(), EngineLimits()
        for claim in self.claim():
            view = fold(claim.run, claim.entries)
            decision = Decision(view.seq)
            ours = claim.run.id == run_id
            if ours:
                decision += accept(view, commands, now_ms, limits=limits)
            if ours and isinstance(outcome, Returned):
                decision += returned(view, outcome, now_ms, limits)
            elif ours and isinstance(outcome, Raised):
                decision += raised(view, outcome, now_ms, limits)
            else:
                pen = Pen(view, now_ms)
                pen.write(EntryKind.RUN_SUSPENDED, {"waits": []})
                decision += pen.decision()
            append = propose(view, decision, now_ms, fence=claim.run.fence)
            assert self.store.runs.append(append).applied
        return self.store.runs.get(RunId(run_id))
