"""`/-/patterns`: every component in every state, made of invented values. A page to look at.

The development script of the tests makes whole pages of the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ci_platform.model import (
    Actor,
    Approval,
    Decision,
    ErrorInfo,
    Json,
    LogLine,
    Repository,
    RepositoryId,
    Resume,
    Run,
    RunId,
    RunState,
    Step,
    StepKey,
    StepKind,
    StepState,
    Wait,
)
from ci_platform.queries import ApprovalView, RunView
from ci_platform.queries.explain import QueueView
from ci_platform.queries.logs import LogInfo
from web.inputs import Input, inputs_of
from web.logs import LogView, log_view
from web.pages import RunRow, run_row
from web.panels import ApprovalPanel, approval_panel
from web.run_pages import RunPage, run_context

COMMIT = "8f3ad0c2b7d14e95a6b0c1d2e3f405162738495a"
READER = Actor(kind="user", id="usr_ana", name="ana", admin=True)
REPOSITORY = Repository(
    id=RepositoryId("repo_example"),
    owner="ana",
    name="hello",
    default_branch="main",
    description="Says hello, in production.",
    created_ms=0,
)
ERROR = ErrorInfo(
    type="CommandFailed",
    message="pytest -q ended with exit code 1",
    traceback='  File ".ci/pipeline.py", line 12, in run\n    await step.sh("unit", "pytest -q")\n',
    data={"exit_code": 1},
)
MINUTE = 60_000


def sample_run(now_ms: int, state: RunState = RunState.RUNNING, *, number: int = 12) -> Run:
    """A run in a state, consistent with it."""
    ended = now_ms - MINUTE if state.terminal else None
    waits = [Wait("approval", "deploy to production", None, now_ms - 4 * MINUTE, None)]
    return Run(
        id=RunId(f"run_{state}_{number}"),
        number=number,
        repository_id=REPOSITORY.id,
        pipeline="CI",
        ref="refs/heads/main",
        commit=COMMIT,
        resume=Resume.PINNED,
        trigger="push",
        payload={"__dispatch": {}, "params": {}},
        event={"message": "Greet people by their first name\n\nMore."},
        actor="ben",
        actor_id="usr_ben",
        trusted=True,
        created_ms=now_ms - 6 * MINUTE,
        state=state,
        reason={"cancelled": "superseded", "errored": "lost_worker"}.get(state.value),
        last_seq=17,
        fence=1,
        worker=None,
        lease_until_ms=None,
        ready_ms=None,
        waits=waits if state is RunState.WAITING else (),
        started_ms=None if state is RunState.QUEUED else now_ms - 6 * MINUTE + 140,
        ended_ms=ended,
        output={"version": "1.4.0"} if state is RunState.PASSED else None,
        error=ERROR if state in (RunState.FAILED, RunState.ERRORED) else None,
        pause_requested=False,
        cancel_requested=False,
        timeout_ms=None,
    )


_OPEN = (StepState.QUEUED, StepState.RUNNING, StepState.WAITING)


def sample_step(
    now_ms: int,
    name: str,
    state: StepState = StepState.PASSED,
    *,
    kind: StepKind = StepKind.SH,
    at_ms: int = -5 * MINUTE,
    took_ms: int = 42_000,
) -> Step:
    ended = None if state in _OPEN else now_ms + at_ms + took_ms
    failed = state is StepState.FAILED
    return Step(
        key=StepKey(kind, name),
        state=state,
        attempts=2 if failed else 1,
        commit=COMMIT,
        started_ms=now_ms + at_ms,
        ended_ms=ended,
        config={"script": f"make {name}"} if kind is StepKind.SH else {},
        value={"exit_code": 0} if state is StepState.PASSED and kind is StepKind.SH else None,
        error=ERROR if failed else None,
    )


def sample_approval(
    run: Run,
    now_ms: int,
    outcome: str | None = None,
    *,
    spec: Mapping[str, Json] | None = None,
    decisions: Sequence[Decision] = (),
    may_answer: bool = True,
) -> ApprovalView:
    approval = Approval(
        run_id=run.id,
        repository_id=REPOSITORY.id,
        key=StepKey(StepKind.APPROVAL, "deploy to production"),
        spec={"approvers": ["role:maintainer"], "required": 1} | dict(spec or {}),
        opened_ms=now_ms - 4 * MINUTE,
        expires_ms=now_ms + 7 * 24 * 60 * MINUTE,
        outcome=outcome,
        closed_ms=None if outcome is None else now_ms - MINUTE,
        decisions=decisions,
    )
    return ApprovalView(approval, run, REPOSITORY, may_answer=may_answer, answered=None)


def sample_decision(now_ms: int, decision: str, user: str = "cleo") -> Decision:
    return Decision(
        user_id=f"usr_{user}",
        user=user,
        decision=decision,
        comment="Checked the dashboards." if decision == "approve" else "Not on a Friday.",
        way="page",
        form={},
        at_ms=now_ms - MINUTE,
    )


def sample_lines(now_ms: int, *, first: int = 1) -> list[LogLine]:
    texts = (
        ("note", "checkout of 8f3ad0c2 in 12 ms"),
        ("stdout", "\x1b[1m============ test session starts ============\x1b[0m"),
        ("stdout", "collected 214 items"),
        ("stdout", "tests/test_greet.py \x1b[32m......................\x1b[0m [ 52%]"),
        ("stdout", "tests/test_names.py \x1b[32m.........\x1b[31mF\x1b[32m...\x1b[0m [100%]"),
        ("stderr", "\x1b[31mE   AssertionError: assert 'Hello, ' == 'Hello, Ana'\x1b[0m"),
        ("stdout", "\x1b[38;5;208m1 failed\x1b[0m, \x1b[92m213 passed\x1b[0m in 41.20s"),
    )
    return [
        LogLine(number, now_ms - 5 * MINUTE + number * 900, stream, text)
        for number, (stream, text) in enumerate(texts, first)
    ]


def sample_view(now_ms: int, run: Run, steps: Sequence[Step], **given: Json) -> RunView:
    return RunView(
        run=run,
        repository=REPOSITORY,
        steps=steps,
        approvals=given.get("approvals", ()),
        logs=[LogInfo(str(one.key), 7) for one in steps if one.key.kind is StepKind.SH],
        commit=None,
        params={"target": "staging"},
        may_change=given.get("may_change", True),
        may_delete=False,
        pause_requested_by="cleo",
        cancelled_by="cleo" if run.reason == "user" else None,
    )


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PatternsPage:
    states: Sequence[RunState]
    rows: Sequence[RunRow]
    heads: Sequence[RunPage]
    run: RunPage
    panels: Sequence[tuple[str, ApprovalPanel]]
    waits: Sequence[Wait]
    error: ErrorInfo
    logs: Sequence[tuple[str, LogView]]
    inputs: Sequence[Input]
    ansi: Sequence[str]


def patterns_page(now_ms: int) -> PatternsPage:
    runs = [sample_run(now_ms, state, number=20 - index) for index, state in enumerate(RunState)]
    return PatternsPage(
        states=list(RunState),
        rows=[run_row(run, REPOSITORY) for run in runs],
        heads=[_head(now_ms, run) for run in runs],
        run=_run(now_ms),
        panels=list(_panels(now_ms)),
        waits=_waits(now_ms),
        error=ERROR,
        logs=list(_logs(now_ms)),
        inputs=inputs_of(
            {
                "target": {"type": "choice", "options": ["staging", "production"]},
                "version": {"type": "text", "label": "Version, as in the changelog"},
                "replicas": {"type": "number", "default": 3, "minimum": 1, "maximum": 9},
                "dry_run": {"type": "boolean", "default": True},
            }
        ),
        ansi=list(_ansi()),
    )


def _head(now_ms: int, run: Run) -> RunPage:
    return run_context(sample_view(now_ms, run, []), READER, log=None, now_ms=now_ms)


def _run(now_ms: int) -> RunPage:
    steps = [
        sample_step(now_ms, "lint", took_ms=9_400),
        sample_step(now_ms, "unit", StepState.FAILED),
        sample_step(now_ms, "build", StepState.RUNNING, at_ms=-2 * MINUTE),
        sample_step(now_ms, "notify", kind=StepKind.DO, at_ms=-3 * MINUTE, took_ms=4),
        sample_step(now_ms, "cool down", StepState.WAITING, kind=StepKind.SLEEP, at_ms=-MINUTE),
        sample_step(now_ms, "smoke", StepState.CANCELLED, at_ms=-MINUTE, took_ms=12_000),
        sample_step(now_ms, "train", StepState.QUEUED, at_ms=-MINUTE),
    ]
    why = QueueView(3, "worker", "waiting for a free worker with the label gpu")
    view = replace(
        sample_view(now_ms, sample_run(now_ms), steps), queues={StepKey(StepKind.SH, "train"): why}
    )
    log = log_view(view, "sh:build", sample_lines(now_ms))
    return run_context(view, READER, log=log, now_ms=now_ms)


def _panels(now_ms: int) -> list[tuple[str, ApprovalPanel]]:
    form = {"reason": {"type": "text"}, "region": {"type": "choice", "options": ["eu", "us"]}}
    two = {"required": 2, "environment": "production"}
    given = [sample_decision(now_ms, "approve")]
    mine = [replace(given[0], user=READER.name, user_id=READER.id)]
    refused = [sample_decision(now_ms, "reject")]
    cases: list[tuple[str, str | None, Mapping[str, Json], Sequence[Decision]]] = [
        ("open, yours to answer", None, {}, ()),
        ("open, one of two given", None, two, given),
        ("open, with a form", None, {"form": form}, ()),
        ("open, your run", None, {}, ()),
        ("open, answered by you", None, two, mine),
        ("approved", "approved", {}, given),
        ("rejected", "rejected", {}, refused),
        ("expired", "expired", {}, ()),
        ("cancelled", "cancelled", {}, ()),
    ]
    panels = []
    for number, (label, outcome, spec, decisions) in enumerate(cases, 31):
        run = sample_run(now_ms, RunState.WAITING, number=number)
        own = label == "open, your run"
        view = sample_approval(
            replace(run, actor_id=READER.id) if own else run,
            now_ms,
            outcome,
            spec=spec,
            decisions=decisions,
            may_answer=not own,
        )
        panels.append((label, approval_panel(view, READER, "Greet people by their first name")))
    return panels


def _waits(now_ms: int) -> list[Wait]:
    kinds = ("sleep", "wait", "approval", "operation", "run", "timer", "retry")
    return [
        Wait(kind, "cool down", "deployed", now_ms - MINUTE, now_ms + 5 * MINUTE) for kind in kinds
    ]


def _logs(now_ms: int) -> list[tuple[str, LogView]]:
    running = sample_step(now_ms, "unit", StepState.RUNNING)
    failed = sample_step(now_ms, "unit", StepState.FAILED)
    run = sample_run(now_ms)
    lines = sample_lines(now_ms)
    later = sample_lines(now_ms, first=1201)
    return [
        ("live", log_view(sample_view(now_ms, run, [running]), "sh:unit", lines)),
        ("finished", log_view(sample_view(now_ms, run, [failed]), "sh:unit", lines)),
        ("the tail of a long one", log_view(sample_view(now_ms, run, [failed]), "sh:unit", later)),
        ("empty", log_view(sample_view(now_ms, run, [running]), "sh:unit", [])),
    ]


def _ansi() -> list[str]:
    plain = " ".join(f"\x1b[{30 + code}mcolour {code}\x1b[0m" for code in range(8))
    bright = " ".join(f"\x1b[{90 + code}mbright {code}\x1b[0m" for code in range(8))
    back = " ".join(f"\x1b[{40 + code}mback {code}\x1b[0m" for code in range(8))
    styles = "\x1b[1mbold\x1b[0m \x1b[2mdim\x1b[0m \x1b[3mitalic\x1b[0m \x1b[4mline\x1b[0m"
    wide = "\x1b[38;5;208m256 colours\x1b[0m \x1b[38;2;120;200;255mtrue colour\x1b[0m"
    return [plain, bright, back, f"{styles} {wide} <script>not markup</script>"]
