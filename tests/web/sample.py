"""A whole site over invented values, to look at and to test pages with: no store, no worker.

    python -m tests.web.sample 8081        then sign in as ana, password `correct horse`

`SampleQueries` answers what the real ones would; `SampleIdentities` keeps one user in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from ci_platform.commands import Commands
from ci_platform.errors import Forbidden, NotSignedIn, RepositoryNotFound, RunNotFound
from ci_platform.identity import Identity, Sessions
from ci_platform.identity.passwords import hash_password
from ci_platform.live import Live
from ci_platform.model import (
    RUN_LOG,
    Actor,
    Description,
    Entry,
    EntryKind,
    Json,
    LogLine,
    PipelineDescription,
    Repository,
    RepositoryId,
    Resume,
    Role,
    Run,
    RunId,
    RunState,
    StepKey,
    StepKind,
    StepState,
    Trigger,
    User,
    UserId,
    Wait,
)
from ci_platform.ports import Bell, Clock, RunFilter, RunPage, Store
from ci_platform.ports.identity import IdentityStore, Token
from ci_platform.ports.repositories import Repositories, Source
from ci_platform.queries import (
    Home,
    Queries,
    RepositoryView,
    RunRow,
    RunView,
    SystemView,
    WorkerView,
)
from ci_platform.queries.logs import LogInfo
from tests.web.browser import PASSWORD
from web import create_web
from web.patterns import (
    COMMIT,
    ERROR,
    MINUTE,
    REPOSITORY,
    sample_approval,
    sample_decision,
    sample_lines,
    sample_run,
    sample_step,
    sample_view,
)

NOW_MS = 1_795_000_000_000
SILENT = WorkerView(
    worker="host-1/4711",
    host="host-1",
    alive=False,
    runs=2,
    operations=1,
    labels=(),
    capacity=4,
    draining=False,
    started_ms=NOW_MS - 3_600_000,
    seen_ms=NOW_MS - 120_000,
)
ANA = User(UserId("usr_ana"), "ana", admin=True, created_ms=NOW_MS)
EMPTY = replace(REPOSITORY, id=RepositoryId("repo_empty"), name="empty", description="")
HOSTILE = "<script>alert(1)</script>\"'&\u202e"


@dataclass(slots=True)
class SampleClock:
    now: int = NOW_MS

    def now_ms(self) -> int:
        return self.now


class SampleIdentities:
    """One user. Enough of an IdentityStore for signing in."""

    def __init__(self, *, empty: bool = False) -> None:
        self._hash = hash_password(PASSWORD)
        self._empty = empty

    def user(self, user_id: UserId) -> User | None:
        return ANA if user_id == ANA.id and not self._empty else None

    def user_by_name(self, name: str) -> tuple[User, str | None] | None:
        return (ANA, self._hash) if name == ANA.name and not self._empty else None

    def users(self) -> list[User]:
        return [] if self._empty else [ANA]

    def roles(self, user_id: UserId) -> Mapping[RepositoryId, Role]:
        return {}


class SilentBell:
    def ring(self) -> None: ...

    def wait(self, timeout_s: float) -> bool:
        return False

    def close(self) -> None: ...


def sample_runs(now_ms: int = NOW_MS) -> list[Run]:
    """One run in every state, and one with hostile text everywhere."""
    runs = [sample_run(now_ms, state, number=20 - n) for n, state in enumerate(RunState)]
    hostile = replace(
        sample_run(now_ms, RunState.FAILED, number=12),
        id=RunId("run_hostile"),
        pipeline=HOSTILE,
        ref=f"refs/heads/{HOSTILE}",
        event={"message": HOSTILE},
        actor=HOSTILE,
        reason=HOSTILE,
        error=replace(ERROR, type=HOSTILE, message=HOSTILE, traceback=HOSTILE),
    )
    paused = next(run for run in runs if run.state is RunState.PAUSED)
    runs[runs.index(paused)] = replace(paused, reason="user")
    retry = replace(
        sample_run(now_ms, RunState.WAITING, number=11),
        id=RunId("run_sleeping"),
        waits=[
            Wait("wait", "dns", "dns-ready", now_ms - MINUTE, now_ms + 60 * MINUTE),
            Wait("sleep", "cool down", None, now_ms - MINUTE, now_ms + 9 * MINUTE),
        ],
    )
    return [*runs, hostile, retry]


@dataclass(frozen=True, slots=True)
class SampleQueries(Queries):
    """Canned answers. `empty` is an instance on which nothing has happened yet."""

    empty: bool = False
    tokens_made: list[Token] = field(default_factory=list)

    def _signed_in(self, actor: Actor) -> None:
        if actor.kind == "anonymous":
            raise NotSignedIn()

    def home(self, actor: Actor) -> Home:
        self._signed_in(actor)
        rows = [RunRow(run, REPOSITORY) for run in sample_runs()]
        gate = sample_approval(sample_run(NOW_MS, RunState.WAITING, number=18), NOW_MS)
        if self.empty:
            return Home((), (), (), (), (), may_create=True)
        return Home(
            approvals=[gate],
            running=[row for row in rows if row.run.state in (RunState.QUEUED, RunState.RUNNING)],
            finished=[row for row in rows if row.run.state.terminal],
            failing=[row for row in rows if row.run.id == "run_failed_15"],
            repositories=[EMPTY, REPOSITORY],
            may_create=True,
        )

    def repository_list(
        self, actor: Actor, *, after: str = "", limit: int = 100
    ) -> Sequence[Repository]:
        return [] if self.empty else [EMPTY, REPOSITORY]

    def repository_page(
        self, actor: Actor, owner: str, name: str, *, which: RunFilter, cursor: str | None = None
    ) -> RepositoryView:
        self._signed_in(actor)
        if owner != REPOSITORY.owner or name not in (REPOSITORY.name, EMPTY.name):
            raise RepositoryNotFound()
        full = name == REPOSITORY.name
        found = [
            run
            for run in sample_runs()
            if (not which.states or run.state in which.states)
            and which.pipeline in (None, run.pipeline)
            and which.branch in (None, run.ref.removeprefix("refs/heads/"))
        ]
        inputs = {
            "target": {"type": "choice", "options": ["staging", "production"]},
            "version": {"type": "text", "label": "Version, as in the changelog"},
        }
        manual = PipelineDescription(
            "Release", (Trigger("manual", inputs=inputs),), resume=Resume.PINNED
        )
        return RepositoryView(
            repository=REPOSITORY if full else EMPTY,
            role=Role.MAINTAINER,
            branches={"main": COMMIT, "release/1": COMMIT} if full else {},
            head=None,
            has_pipeline=full,
            pipelines=["CI", "Release"] if full else [],
            runs=RunPage(found if full else [], "next page" if full and not cursor else None),
            approvals=[],
            may_start=True,
            may_configure=True,
            described=Description(pipelines=(manual,)) if full else Description(),
        )

    def run(self, actor: Actor, run_id: RunId) -> Run:
        self._signed_in(actor)
        for run in sample_runs():
            if run.id == run_id:
                return run
        raise RunNotFound()

    def queued(self, actor: Actor, run_id: RunId) -> Mapping[StepKey, int]:
        return {}

    def run_by_number(self, actor: Actor, owner: str, name: str, number: int) -> Run:
        for run in sample_runs():
            if run.number == number:
                return run
        raise RunNotFound()

    def run_page(self, actor: Actor, run_id: RunId) -> RunView:
        run = self.run(actor, run_id)
        label = HOSTILE if run_id == "run_hostile" else "unit"
        last = {
            RunState.RUNNING: StepState.RUNNING,
            RunState.PASSED: StepState.PASSED,
            RunState.CANCELLED: StepState.CANCELLED,
        }.get(run.state, StepState.FAILED)
        if run.state is RunState.QUEUED:
            return sample_view(NOW_MS, run, [])
        if run.state is RunState.ERRORED:
            return sample_view(NOW_MS, run, [sample_step(NOW_MS, "lint", took_ms=9_400)])
        gated = run.state in (RunState.WAITING, RunState.PASSED) and run_id != "run_sleeping"
        steps = [
            sample_step(NOW_MS, "lint", took_ms=9_400),
            sample_step(NOW_MS, "build", took_ms=31_000, at_ms=-5 * MINUTE + 200),
        ]
        if not gated:
            steps.append(sample_step(NOW_MS, label, last, at_ms=-4 * MINUTE))
        if run_id == "run_sleeping":
            steps[-1:] = [
                sample_step(NOW_MS, "dns", StepState.WAITING, kind=StepKind.WAIT, at_ms=-MINUTE),
                sample_step(
                    NOW_MS, "cool down", StepState.WAITING, kind=StepKind.SLEEP, at_ms=-MINUTE
                ),
            ]
        approvals = []
        if gated:
            passed = run.state is RunState.PASSED
            steps.append(
                sample_step(
                    NOW_MS,
                    "deploy to production",
                    StepState.PASSED if passed else StepState.WAITING,
                    kind=StepKind.APPROVAL,
                    at_ms=-4 * MINUTE,
                    took_ms=MINUTE,
                )
            )
            approvals = [
                sample_approval(
                    run,
                    NOW_MS,
                    "approved" if passed else None,
                    decisions=[sample_decision(NOW_MS, "approve")] if passed else (),
                )
            ]
        view = sample_view(NOW_MS, run, steps, approvals=approvals)
        return replace(view, logs=[*view.logs, LogInfo(RUN_LOG, 1)])

    def journal(
        self, actor: Actor, run_id: RunId, *, after: int = 0, limit: int = 1000
    ) -> Sequence[Entry]:
        self.run(actor, run_id)
        key = StepKey(StepKind.SH, HOSTILE if run_id == "run_hostile" else "unit")
        error = {"type": "CommandFailed", "message": "exit code 1", "data": {"exit_code": 1}}
        parts: list[tuple[EntryKind, StepKey | None, int | None, Json]] = [
            (EntryKind.RUN_CREATED, None, None, {"trigger": "push", "actor": "ben"}),
            (EntryKind.RUN_CLAIMED, None, None, {"worker": "w1", "fence": 1}),
            (EntryKind.STEP_STARTED, key, 1, {"config": {"script": "pytest -q", "env": {}}}),
            (EntryKind.ATTEMPT_FAILED, key, 1, {"error": error, "retry_at_ms": NOW_MS}),
            (EntryKind.ATTEMPT_STARTED, key, 2, {}),
            (EntryKind.STEP_FAILED, key, 2, {"error": error}),
            (EntryKind.RUN_FAILED, None, None, {"error": error | {"traceback": "x\n" * 40}}),
        ]
        entries = [
            Entry(seq, kind, NOW_MS - 6 * MINUTE + seq * 740, data, key, attempt)
            for seq, (kind, key, attempt, data) in enumerate(parts, 1)
        ]
        return entries[after : after + limit]

    def log(
        self, actor: Actor, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000
    ) -> list[LogLine]:
        self.run(actor, run_id)
        lines = sample_lines(NOW_MS)
        if run_id == "run_hostile":
            lines = [LogLine(1, NOW_MS, "stdout", f"\x1b[31m{HOSTILE}\x1b[0m")]
        return lines[after : after + limit]

    def log_tail(
        self, actor: Actor, run_id: RunId, step: str, *, limit: int = 1000
    ) -> list[LogLine]:
        return self.log(actor, run_id, step)[-limit:]

    def system(self, actor: Actor) -> SystemView:
        self._signed_in(actor)
        if not actor.admin:
            raise Forbidden("to read system you must be an admin of this instance")
        counts = {RunState.QUEUED: 3, RunState.RUNNING: 2, RunState.WAITING: 50_112}
        return SystemView(
            counts={} if self.empty else counts,
            due=0 if self.empty else 3,
            oldest_due_ms=None if self.empty else NOW_MS - 2 * MINUTE,
            next_ready_ms=NOW_MS + 5 * MINUTE,
            workers=[] if self.empty else [SILENT],
            approvals_open=1,
            now_ms=NOW_MS,
        )

    def tokens(self, actor: Actor) -> list[Token]:
        if self.empty:
            return []
        return [
            Token(
                id="tok_1",
                name="laptop",
                user_id=ANA.id,
                scopes=frozenset({"repo:read", "repo:write"}),
                repository_id=None,
                created_ms=NOW_MS - 90 * 24 * 60 * MINUTE,
                expires_ms=NOW_MS + 24 * 60 * MINUTE,
                last_used_ms=NOW_MS - MINUTE,
            ),
            *self.tokens_made,
        ]

    def audit(self, actor: Actor, *, limit: int = 100) -> Sequence[Mapping[str, Json]]:
        if self.empty:
            return []
        return [
            {
                "at_ms": NOW_MS - MINUTE,
                "actor": "cleo",
                "action": "run.cancel",
                "subject": "ana/hello#17",
                "detail": {"rollback": False},
            }
        ]

    def names(self, ids: object) -> Mapping[RepositoryId, Repository]:
        return {REPOSITORY.id: REPOSITORY}


def sample_queries(*, empty: bool = False) -> SampleQueries:
    return SampleQueries(
        store=cast(Store, object()),
        source=cast(Source, object()),
        repositories=cast(Repositories, object()),
        clock=cast(Clock, SampleClock()),
        empty=empty,
    )


def sample_identity(*, empty: bool = False) -> Identity:
    clock = SampleClock()
    store = cast(IdentityStore, SampleIdentities(empty=empty))
    return Identity(store, Sessions(b"sixteen bytes or more", clock), clock)


def sample_site(
    *, empty: bool = False, commands: Commands | None = None, base_url: str = "http://ci.example"
) -> ASGIApp:
    return create_web(
        commands if commands is not None else cast(Commands, object()),
        sample_queries(empty=empty),
        sample_identity(empty=empty),
        live_streams=Live(lambda: cast(Bell, SilentBell())),
        base_url=base_url,
    )


if __name__ == "__main__":
    uvicorn.run(sample_site(empty="--empty" in sys.argv), port=int(sys.argv[1]))
