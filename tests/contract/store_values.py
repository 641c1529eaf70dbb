"""Values and short forms for the store's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ci_platform.effects import Effect, OpenApproval, OpenOperation
from ci_platform.model import (
    Draft,
    EntryKind,
    ErrorInfo,
    Json,
    NewRun,
    OperationId,
    RepositoryId,
    Resume,
    Run,
    RunId,
    RunState,
    RunUpdate,
    StepKey,
    StepKind,
    Wait,
    WorkerId,
)
from ci_platform.ports import Append, Appended, Store

REPO = RepositoryId("repo_a")
WORKER = WorkerId("worker-1")
LEASE_MS = 30_000
BUILD = StepKey(StepKind.SH, "build")
GATE = StepKey(StepKind.APPROVAL, "deploy to production")


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, milliseconds: int) -> None:
        self._now_ms += milliseconds


def new_run(
    name: str = "one",
    *,
    repository: str = REPO,
    params: Json = None,
    failed: ErrorInfo | None = None,
    ref: str = "refs/heads/main",
    pipeline: str = "CI",
) -> NewRun:
    return NewRun(
        id=RunId(f"run_{name}"),
        repository_id=RepositoryId(repository),
        pipeline=pipeline,
        ref=ref,
        commit="c" * 40,
        resume=Resume.PINNED,
        trigger="push",
        payload={"__dispatch": {"pipeline": pipeline}, "params": params},
        event={"message": "grüße", "before": None},
        actor="ann",
        actor_id="usr_ann",
        timeout_ms=7_200_000,
        failed=failed,
    )


def created(store: Store, name: str = "one", *, repository: str = REPO) -> Run:
    return store.runs.create([new_run(name, repository=repository)])[0]


def claimed(store: Store, *, worker: WorkerId = WORKER) -> Run:
    """The one run that is due, leased."""
    claims = store.runs.claim(worker, limit=1, lease_ms=LEASE_MS)
    assert len(claims) == 1
    return claims[0].run


def started(store: Store, name: str = "one") -> Run:
    created(store, name)
    return claimed(store)


def update(
    run: Run,
    state: RunState = RunState.RUNNING,
    *,
    hold: bool | None = None,
    ready_ms: int | None = None,
    waits: Sequence[Wait] = (),
    output: Json = None,
    reason: str | None = None,
    error: ErrorInfo | None = None,
) -> RunUpdate:
    """Held while it runs, unless said otherwise."""
    return RunUpdate(
        state=state,
        reason=reason,
        ready_ms=ready_ms,
        waits=waits,
        commit=run.commit,
        output=output,
        error=error,
        pause_requested=False,
        cancel_requested=False,
        hold=state is RunState.RUNNING if hold is None else hold,
    )


def append(
    store: Store,
    run: Run,
    *drafts: Draft,
    to: RunUpdate | None = None,
    fence: int | None = None,
    effects: Sequence[Effect] = (),
) -> Appended:
    """Append behind what `run` has seen."""
    return store.runs.append(
        Append(
            run_id=run.id,
            expected_seq=run.last_seq,
            drafts=drafts or (note(),),
            update=to or update(run),
            fence=fence,
            effects=effects,
        )
    )


def note(data: Mapping[str, Json] | None = None) -> Draft:
    return Draft(EntryKind.EVENT_RECEIVED, data or {"type": "t", "payload": 1})


def suspend(store: Store, run: Run, *, ready_ms: int | None = None) -> Run:
    to = update(run, RunState.WAITING, ready_ms=ready_ms)
    return append(store, run, Draft(EntryKind.RUN_SUSPENDED), to=to, fence=run.fence).run


def end(store: Store, run: Run, state: RunState = RunState.PASSED) -> Run:
    to = update(run, state, output={"version": "1"})
    return append(store, run, Draft(EntryKind.RUN_PASSED), to=to).run


def operation(name: str = "op_1", *, ready_ms: int = 0, key: StepKey = BUILD) -> OpenOperation:
    return OpenOperation(OperationId(name), key, 1, {"script": "make"}, ready_ms)


def gate(key: StepKey = GATE, *, expires_ms: int | None = None) -> OpenApproval:
    return OpenApproval(key, {"approvers": ["role:maintainer"], "required": 1}, expires_ms)
