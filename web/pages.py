"""The pages: one function per page, each returning a typed page context. No rules, no HTML.

Called by routes.py in the thread pool. The pages of one run are in run_pages.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from ci_platform.errors import InvalidRequest
from ci_platform.identity import Scope
from ci_platform.model import (
    Actor,
    ErrorInfo,
    Json,
    Repository,
    RepositoryId,
    Run,
    RunState,
)
from ci_platform.ports import RunFilter
from ci_platform.ports.identity import Token
from ci_platform.ports.mirroring import Mirror
from ci_platform.queries import Queries, SystemView, WorkerView
from ci_platform.queries import RunRow as FoundRun
from ci_platform.scheduling import Hold
from web.filters import duration, first_line, period
from web.inputs import Input, inputs_of
from web.panels import ApprovalPanel, approval_panel

TITLE_CHARS_MAX = 200
FILTER_CHARS_MAX = 256


# --- rows of runs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a table."""

    run: Run
    repository: Repository
    title: str
    wait_kind: str  # approval, or another kind of wait, or nothing
    note: str


def title_of(run: Run) -> str:
    """The first line of the commit's message, or what started the run."""
    message = first_line(str(run.event.get("message") or ""))
    return message[:TITLE_CHARS_MAX] or f"{run.trigger} run of {run.pipeline}"


def wait_kind(run: Run) -> str:
    return run.waits[0].kind if run.state is RunState.WAITING and run.waits else ""


def run_row(run: Run, repository: Repository) -> RunRow:
    note = ""
    if run.state is RunState.WAITING and run.waits:
        note = f"for {run.waits[0].name or run.waits[0].kind}"
    elif run.hold is Hold.GROUP:
        note = f"waits for group {run.place.group}"
    elif run.hold is Hold.LIMIT:
        note = "waits for the limit of its repository"
    elif run.pause_requested and run.state is RunState.RUNNING:
        note = "pause requested"
    elif run.reason and run.state is not RunState.PASSED:
        note = reason_text(run.reason)
    return RunRow(run, repository, title_of(run), wait_kind(run), note)


def reason_text(reason: str) -> str:
    return {
        "user": "by a person",
        "superseded": "superseded by a newer run",
        "timeout": "out of time",
        "retries_exhausted": "out of attempts",
        "lost_worker": "its worker was lost",
        "nondeterminism": "its replay took another way",
    }.get(reason, reason.replace("_", " "))


def _rows(found: Sequence[FoundRun]) -> list[RunRow]:
    return [run_row(row.run, row.repository) for row in found]


# --- home ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HomePage:
    approvals: Sequence[ApprovalPanel]
    running: Sequence[RunRow]
    failing: Sequence[RunRow]
    finished: Sequence[RunRow]
    repositories: Sequence[Repository]
    base_url: str


def home_page(queries: Queries, actor: Actor, *, base_url: str) -> HomePage:
    home = queries.home(actor)
    return HomePage(
        approvals=[approval_panel(view, actor, title_of(view.run)) for view in home.approvals],
        running=_rows(home.running),
        failing=_rows(home.failing),
        finished=_rows(home.finished),
        repositories=home.repositories,
        base_url=base_url,
    )


# --- repository ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunFilters:
    """The query string of a repository's page."""

    state: str = ""
    pipeline: str = ""
    branch: str = ""
    cursor: str = ""
    start: str = ""  # the pipeline whose start form is open

    def which(self) -> RunFilter:
        for name in ("state", "pipeline", "branch"):
            if len(getattr(self, name)) > FILTER_CHARS_MAX:
                raise InvalidRequest(f"{name} has over {FILTER_CHARS_MAX} characters", field=name)
        try:
            states = (RunState(self.state),) if self.state else ()
        except ValueError as error:
            words = ", ".join(RunState)
            raise InvalidRequest(
                f"no run is {self.state[:40]!r}; there are {words}", field="state"
            ) from error
        return RunFilter(states=states, pipeline=self.pipeline or None, branch=self.branch or None)


@dataclass(frozen=True, slots=True)
class StartForm:
    pipeline: str
    inputs: Sequence[Input]


@dataclass(frozen=True, slots=True)
class MirrorPanel:
    """Which remote a repository follows, and how that goes. Never its credentials."""

    url: str
    every: str  # `hour`; nothing: only when told to
    synced_ms: int | None
    next_ms: int | None
    failures: int  # since it last worked
    checked_ms: int | None
    outcome: str
    may_sync: bool


def mirror_panel(mirror: Mirror, *, may_sync: bool) -> MirrorPanel:
    return MirrorPanel(
        url=mirror.url,
        every="" if mirror.every_ms is None else period(mirror.every_ms),
        synced_ms=mirror.synced_ms,
        next_ms=mirror.next_ms,
        failures=mirror.tries,
        checked_ms=mirror.checked_ms,
        outcome=mirror.outcome or "",
        may_sync=may_sync,
    )


@dataclass(frozen=True, slots=True)
class RepositoryPage:
    repository: Repository
    clone_url: str
    rows: Sequence[RunRow]
    older_href: str | None
    filtered: bool
    state: str
    pipeline: str
    branch: str
    states: Sequence[RunState]
    pipelines: Sequence[str]
    branches: Sequence[str]
    default_branch: str
    forms: Sequence[StartForm]
    opened: str
    description_error: ErrorInfo | None
    described_commit: str
    mirror: MirrorPanel | None


def repository_page(
    queries: Queries, actor: Actor, owner: str, name: str, *, filters: RunFilters, base_url: str
) -> RepositoryPage:
    view = queries.repository_page(
        actor, owner, name, which=filters.which(), cursor=filters.cursor or None
    )
    repository = view.repository
    asked = {"state": filters.state, "pipeline": filters.pipeline, "branch": filters.branch}
    asked = {key: value for key, value in asked.items() if value}
    older = None
    if view.runs.cursor is not None:
        older = f"/{repository.full_name}?{urlencode(asked | {'cursor': view.runs.cursor})}"
    forms = [
        StartForm(described.name, inputs_of(trigger.inputs))
        for described in view.described.pipelines
        for trigger in described.triggers
        if trigger.kind == "manual"
    ]
    return RepositoryPage(
        repository=repository,
        clone_url=f"{base_url}/{repository.full_name}.git",
        rows=[run_row(run, repository) for run in view.runs.runs],
        older_href=older,
        filtered=bool(asked or filters.cursor),
        state=filters.state,
        pipeline=filters.pipeline,
        branch=filters.branch,
        states=list(RunState),
        pipelines=view.pipelines,
        branches=sorted(view.branches),
        default_branch=repository.default_branch,
        forms=forms if view.may_start else [],
        opened=filters.start,
        description_error=view.described.error,
        described_commit=view.head.sha if view.head is not None else "",
        mirror=mirror_panel(view.mirror, may_sync=view.may_sync) if view.mirror else None,
    )


# --- system --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditRow:
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class SystemPage:
    counts: Sequence[tuple[RunState, int]]
    due: int
    oldest_due_ms: int | None
    next_ready_ms: int | None
    command_waits: bool  # since then, for a worker that can run it
    approvals_open: int
    workers: Sequence[WorkerView]
    audit: Sequence[AuditRow]
    warning: str


def system_page(queries: Queries, actor: Actor) -> SystemPage:
    view = queries.system(actor)
    live = (RunState.QUEUED, RunState.RUNNING, RunState.WAITING, RunState.PAUSED)
    return SystemPage(
        counts=[(state, view.counts.get(state, 0)) for state in live],
        due=view.due,
        oldest_due_ms=view.oldest_due_ms,
        next_ready_ms=view.next_ready_ms,
        command_waits=view.next_ready_ms is not None and view.next_ready_ms <= view.now_ms,
        approvals_open=view.approvals_open,
        workers=view.workers,
        audit=[
            AuditRow(
                at_ms=int(record["at_ms"]),
                actor=str(record["actor"]),
                action=str(record["action"]),
                subject=str(record["subject"]),
                detail=record["detail"],
            )
            for record in queries.audit(actor)
        ],
        warning=stalled(view),
    )


def stalled(view: SystemView) -> str:
    """The banner when no worker polls; empty when all is well."""
    if any(worker.alive for worker in view.workers):
        return ""
    if not view.due or view.oldest_due_ms is None:
        return "No worker is there: runs will stay queued. Start one with `sluice worker`."
    return (
        f"No worker takes runs: the oldest of {view.due:,} due has waited "
        f"{duration(view.now_ms - view.oldest_due_ms)}. Start one with `sluice worker`."
    )


# --- tokens --------------------------------------------------------------------------------------

SCOPES = (
    (Scope.READ, "see repositories, runs and logs; clone and fetch"),
    (Scope.WRITE, "push and write files"),
    (Scope.RUN, "start, change and approve runs"),
    (Scope.ADMIN, "everything you may do"),
)
LIFETIMES = ((7, "7 days"), (30, "30 days"), (90, "90 days"), (365, "a year"), (0, "never"))
REPOSITORIES_SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class TokenRow:
    token: Token
    where: str


@dataclass(frozen=True, slots=True)
class TokensPage:
    tokens: Sequence[TokenRow]
    repositories: Sequence[str]
    scopes: Sequence[tuple[str, str]] = SCOPES
    lifetimes: Sequence[tuple[int, str]] = LIFETIMES
    secret: str = ""
    secret_name: str = ""
    problem: str = ""
    name: str = ""
    chosen: Sequence[str] = (Scope.READ, Scope.WRITE)


def tokens_page(queries: Queries, actor: Actor) -> TokensPage:
    tokens = queries.tokens(actor)
    bound: list[RepositoryId] = sorted(
        {token.repository_id for token in tokens if token.repository_id is not None}
    )
    names = queries.names(bound)

    def where(token: Token) -> str:
        if token.repository_id is None:
            return "every repository"
        found = names.get(token.repository_id)
        return found.full_name if found is not None else "a deleted repository"

    repositories = queries.repository_list(actor, limit=REPOSITORIES_SHOWN_MAX)
    return TokensPage(
        tokens=[TokenRow(token, where(token)) for token in tokens],
        repositories=[repository.full_name for repository in repositories],
    )


def with_secret(page: TokensPage, name: str, secret: str) -> TokensPage:
    return replace(page, secret=secret, secret_name=name)


# --- doors and problems --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignInPage:
    next: str
    name: str = ""
    problem: str = ""
    needs_setup: bool = False


@dataclass(frozen=True, slots=True)
class SetupPage:
    password_min: int
    name: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProblemPage:
    status: int
    title: str
    detail: str
    todo: str
    href: str = "/"
    link: str = "Go to the home page"
    icon: str = "failed"


_TITLES = {
    400: ("This request does not work", "Go back, change it and try again."),
    401: ("Sign in first", "This page needs to know who you are."),
    403: ("Not yours to do", "Somebody with more rights here can do it, or give you the right."),
    404: ("Not found", "Check the address. If it was here, it may have been pruned or renamed."),
    405: ("This address does not take that", "Use the buttons of the page instead."),
    409: ("Not possible right now", "Look at its present state, then decide again."),
    413: ("Too large", "Make it smaller and try again."),
    429: ("Too many tries", "Wait a while, then try again."),
}


def problem_page(status: int, detail: str) -> ProblemPage:
    """The page of an error: what is wrong, in one sentence, and what to do."""
    if status >= 500:
        return ProblemPage(
            status,
            "Something broke",
            "The platform made a mistake; it is not yours.",
            "Try again. If it stays so, the server's log says why.",
            icon="errored",
        )
    title, todo = _TITLES.get(status, _TITLES[400])
    sentence = detail.strip() or title
    sentence = sentence[0].upper() + sentence[1:]
    if sentence[-1] not in ".!?":
        sentence += "."
    return ProblemPage(status, title, sentence, todo)
