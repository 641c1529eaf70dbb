"""The pages of one run: the run, a step, the journal. Each returns a typed page context.

Called by routes.py in the thread pool, and by live.py, which renders parts of the same contexts.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from ci_platform.errors import NotFound, StepNotFound
from ci_platform.model import (
    RUN_LOG,
    Actor,
    Entry,
    EntryKind,
    ErrorInfo,
    Json,
    Repository,
    Rollback,
    Run,
    RunId,
    RunState,
    Step,
    StepKey,
    StepKind,
    StepState,
    Wait,
)
from ci_platform.queries import Queries, Relative, RunView
from ci_platform.queries.explain import Again, CodeChange, QueueView, Stuck
from ci_platform.shell import Artifact
from web.logs import (
    LOG_LINES_ON_RUN,
    LogView,
    check_log_key,
    chosen_log,
    exit_code,
    find_step,
    log_view,
)
from web.pages import reason_text, title_of, wait_kind
from web.panels import ApprovalPanel, approval_panel

STEPS_SHOWN_MAX = 500  # rows of a run's page; the journal has all of them
ARTIFACTS_SHOWN_MAX = 500  # likewise; the API lists all of them
GATES_SHOWN_MAX = 50  # panels of approvals, those that are open first
JOURNAL_SHOWN = 500  # entries of one page
JOURNAL_SCAN_MAX = 100_000  # entries looked at for the attempts of a step
EVENTS_MAX = 5  # types of events that a page has a form for
BAR_WIDTH = 1000  # units of the timeline; a step too short to see gets MIN
BAR_WIDTH_MIN = 8
_SHORT_DATA = 100  # characters of an entry's data shown without opening it


# --- the run -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepRow:
    step: Step
    href: str
    selected: bool
    bar_start: int  # of BAR_WIDTH, the time from the run's start to its end or now
    bar_width: int
    note: str
    may_rerun: bool  # a new run may begin with it


@dataclass(frozen=True, slots=True)
class Rerun:
    """The form that starts a finished run again from one of its steps."""

    run: Run


@dataclass(frozen=True, slots=True)
class RunPage:
    run: Run
    repository: Repository
    title: str
    document_title: str
    say: str  # for the announcer
    pipeline_href: str
    wait_kind: str
    sentence: str
    entry_seq: int | None
    waits: Sequence[Wait]
    approvals: Sequence[ApprovalPanel]
    approvals_hidden: int
    approvals_version: str
    events: Sequence[str]  # types of events that it waits for and the reader may send
    steps: Sequence[StepRow]
    steps_hidden: int
    no_steps_why: str
    run_log_href: str | None  # what the pipeline printed outside of steps
    log: LogView | None
    may_change: bool
    params: Json
    artifacts: Sequence[Artifact]
    artifacts_hidden: int
    origins: Mapping[StepKey, int]  # numbers of the runs that executed them, if not this one
    again: Again | None
    rerun: Rerun | None
    changes: Sequence[CodeChange]
    stuck: Sequence[Stuck]
    rollback: Rollback | None
    parent: Relative | None
    children: Sequence[Relative]
    live_url: str | None
    older_href: str | None = None
    newer_href: str | None = None


def run_page(
    queries: Queries, actor: Actor, run_id: RunId, *, step: str = "", now_ms: int
) -> RunPage:
    """A run's page. `step` chooses the log that is shown; left out, it follows what runs."""
    view = queries.run_page(actor, run_id)
    key = check_log_key(view, step) if step else chosen_log(view)
    log = None
    if key is not None:
        lines = queries.log_tail(actor, run_id, key, limit=LOG_LINES_ON_RUN)
        log = log_view(view, key, lines)
    return run_context(
        view,
        actor,
        log=log,
        pinned=step,
        now_ms=now_ms,
        older_href=_sibling(queries, actor, view, -1),
        newer_href=_sibling(queries, actor, view, 1),
    )


def run_context(
    view: RunView,
    actor: Actor,
    *,
    log: LogView | None,
    now_ms: int,
    pinned: str = "",
    older_href: str | None = None,
    newer_href: str | None = None,
) -> RunPage:
    """The page's context from what the queries answered; pure, so samples use it too."""
    run = view.run
    title = title_of(run)
    name = f"{view.repository.full_name} #{run.number}"
    panels = [approval_panel(found, actor, title) for found in view.approvals]
    events = _events(view)
    sentence, entry_seq = _sentence(view)
    selected = log.key if log is not None else ""
    return RunPage(
        run=run,
        repository=view.repository,
        title=title,
        document_title=f"{run.state} · {name} {title}",
        say=_say(run),
        pipeline_href=f"/{view.repository.full_name}?{urlencode({'pipeline': run.pipeline})}",
        wait_kind=wait_kind(run),
        sentence=sentence,
        entry_seq=entry_seq,
        waits=_waits(run, panels),
        # open gates first: they ask for something
        approvals=sorted(panels, key=lambda panel: panel.approval.outcome is not None)[
            :GATES_SHOWN_MAX
        ],
        approvals_hidden=max(0, len(panels) - GATES_SHOWN_MAX),
        approvals_version=" ".join([*(panel.version for panel in panels), *events]) or "none",
        events=events,
        steps=step_rows(view, selected=selected, now_ms=now_ms),
        steps_hidden=max(0, len(_shown(view.steps)) - STEPS_SHOWN_MAX),
        no_steps_why=_no_steps(run),
        run_log_href=_run_log_href(view),
        log=log,
        may_change=view.may_change,
        params=view.params,
        artifacts=view.artifacts[:ARTIFACTS_SHOWN_MAX],
        artifacts_hidden=max(0, len(view.artifacts) - ARTIFACTS_SHOWN_MAX),
        origins={one.key: one.origin.number for one in view.steps if one.origin is not None},
        again=view.again,
        rerun=Rerun(run) if run.state.terminal and view.may_change and view.steps else None,
        changes=view.changes,
        stuck=view.stuck,
        rollback=view.rollback,
        parent=view.parent,
        children=view.children,
        live_url=None if run.state.terminal else _live_url(run, pinned, queued=standing_of(view)),
        older_href=older_href,
        newer_href=newer_href,
    )


def _waits(run: Run, panels: Sequence[ApprovalPanel]) -> list[Wait]:
    """What a waiting run waits for, but for the approvals that have a panel of their own."""
    if run.state is not RunState.WAITING:
        return []
    shown = any(panel.approval.outcome is None for panel in panels)
    return [wait for wait in run.waits if not (shown and wait.kind == "approval")]


def _events(view: RunView) -> list[str]:
    """The types of events that a waiting run waits for, if the reader may send one."""
    if view.run.state is not RunState.WAITING or not view.may_change:
        return []
    return list(dict.fromkeys(wait.type for wait in view.run.waits if wait.type))[:EVENTS_MAX]


def _live_url(run: Run, pinned: str, *, queued: int) -> str:
    asked = {"after": str(run.last_seq)} | ({"queued": str(queued)} if queued else {})
    asked |= {"step": pinned} if pinned else {}
    return f"/runs/{run.id}/live?{urlencode(asked)}"


def _say(run: Run) -> str:
    if run.state is RunState.WAITING and run.waits:
        wait = run.waits[0]
        if wait.kind == "approval":
            return f"Run {run.number} waits for approval: {wait.name}"
        return f"Run {run.number} is waiting: {wait.name or wait.kind}"
    return f"Run {run.number} is {run.state}"


def _sentence(view: RunView) -> tuple[str, int | None]:
    """What a reader must know beyond the state, and the journal entry that says it in full."""
    run = view.run
    if run.state is RunState.ERRORED:
        return "The platform failed to run this, not your code.", run.last_seq
    if run.state is RunState.PAUSED:
        if run.reason == "nondeterminism":
            return "Stopped for safety: the replay took another way than before.", run.last_seq
        return f"Paused by {view.pause_requested_by or reason_text(run.reason or 'user')}.", None
    if run.state is RunState.CANCELLED:
        by = view.cancelled_by or ""
        why = f" ({reason_text(run.reason)})" if run.reason and run.reason != "user" else ""
        return f"Cancelled{f' by {by}' if by else ''}{why}.", None
    if run.state is RunState.FAILED and run.reason:
        return f"Failed: {reason_text(run.reason)}.", None
    if run.state is RunState.QUEUED and view.queue is not None:
        ahead = f" It is number {view.queue.place} in line." if view.queue.position > 1 else ""
        return f"{view.queue.reason[0].upper()}{view.queue.reason[1:]}.{ahead}", None
    if run.state is RunState.QUEUED and run.started_ms is None:
        return "Waits for a free worker.", None
    return "", None


def _run_log_href(view: RunView) -> str | None:
    if not any(info.step == RUN_LOG for info in view.logs):
        return None
    return f"/runs/{view.run.id}?{urlencode({'step': RUN_LOG})}#log"


def _no_steps(run: Run) -> str:
    if run.state.terminal:
        return "The pipeline ended without reaching one."
    return "They appear here as the pipeline reaches them."


def _shown(steps: Sequence[Step]) -> list[Step]:
    """Steps people know of: timers of the event loop itself are in the journal only."""
    return [step for step in steps if step.key.kind is not StepKind.TIMER]


def step_rows(view: RunView, *, selected: str, now_ms: int) -> list[StepRow]:
    run = view.run
    start = run.started_ms if run.started_ms is not None else run.created_ms
    end = run.ended_ms if run.ended_ms is not None else now_ms
    rows = []
    for step in _shown(view.steps)[-STEPS_SHOWN_MAX:]:
        at, width = bar(step.started_ms, step.ended_ms, start=start, end=end)
        asked = urlencode({"step": str(step.key)}, quote_via=quote)
        rows.append(
            StepRow(
                step=step,
                href=f"/runs/{run.id}?{asked}#log",
                selected=str(step.key) == selected,
                bar_start=at,
                bar_width=width,
                note=_step_note(step, view.queues.get(step.key)),
                may_rerun=rerunnable(step),
            )
        )
    return rows


def bar(started_ms: int, ended_ms: int | None, *, start: int, end: int) -> tuple[int, int]:
    """Where a step lies on the run's timeline, in units of BAR_WIDTH."""
    whole = max(1, end - start)
    at = min(max(0, started_ms - start), whole) * BAR_WIDTH // whole
    until = min(max(0, (end if ended_ms is None else ended_ms) - start), whole)
    width = max(BAR_WIDTH_MIN, until * BAR_WIDTH // whole - at)
    at = min(at, BAR_WIDTH - BAR_WIDTH_MIN)
    return at, min(width, BAR_WIDTH - at)


def standing_of(view: RunView) -> int:
    """A number that is another when a queued command has moved up, or a worker has taken it."""
    return standing({key: one.position - 1 for key, one in view.queues.items()})


def standing(ahead: Mapping[StepKey, int]) -> int:
    """The same, of what `Queries.queued` answers. 0: none is queued."""
    return zlib.crc32(repr(sorted(ahead.items())).encode()) if ahead else 0


def queue_note(queue: QueueView) -> str:
    return f"{queue.reason}, number {queue.place} in line"


def _step_note(step: Step, queue: QueueView | None) -> str:
    if queue is not None:
        return queue_note(queue)
    code = exit_code(step)
    if step.state is StepState.FAILED and code is not None:
        return f"exit code {code}"
    if step.state is StepState.FAILED and step.error is not None:
        return step.error.type
    if step.state is StepState.PASSED and code:
        return f"exit code {code}, allowed"
    if step.state is StepState.PASSED and step.key.kind is StepKind.SH:
        earlier = (step.value or {}).get("from_run")
        return f"from run #{earlier}" if earlier else ""
    if step.state is StepState.RUNNING and step.key.kind is StepKind.SERVICE:
        return "beside the commands of its block"
    return ""


def _sibling(queries: Queries, actor: Actor, view: RunView, by: int) -> str | None:
    owner, name = view.repository.owner, view.repository.name
    try:
        found = queries.run_by_number(actor, owner, name, view.run.number + by)
    except NotFound:
        return None
    return f"/runs/{found.id}"


# --- a step --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    number: int
    state: StepState
    started_ms: int
    ended_ms: int | None
    error: ErrorInfo | None
    retry_ms: int | None
    commit: str  # whose code it executed


@dataclass(frozen=True, slots=True)
class StepPage:
    run: Run
    repository: Repository
    title: str
    step: Step
    attempts: Sequence[Attempt]
    attempt: Attempt | None
    approval: ApprovalPanel | None
    script: str
    log: LogView | None
    rerun: Rerun | None
    debug: str = ""  # a command that opens a shell where it failed
    queue: str = ""  # why its command waits for a worker


def step_page(
    queries: Queries, actor: Actor, run_id: RunId, key: str, *, attempt: int | None = None
) -> StepPage:
    view = queries.run_page(actor, run_id)
    step = find_step(view, key)
    if step is None:
        raise StepNotFound(f"run #{view.run.number} has no step {key[:100]!r}")
    attempts: list[Attempt] = []
    log = None
    if step.key.kind in (StepKind.SH, StepKind.SERVICE, StepKind.DO, StepKind.RUN):
        attempts = attempts_of(step.key, _whole_journal(queries, actor, run_id))
        lines = queries.log_tail(actor, run_id, key, limit=LOG_LINES_ON_RUN)
        log = replace(log_view(view, key, lines), step_href=None)  # it is this page
    chosen = next((one for one in attempts if one.number == attempt), None)
    title = title_of(view.run)
    gate = next((one for one in view.approvals if one.approval.key == step.key), None)
    queue = view.queues.get(step.key)
    if queue is not None and attempts:
        attempts[-1] = replace(attempts[-1], state=StepState.QUEUED)
    return StepPage(
        run=view.run,
        repository=view.repository,
        title=title,
        step=step,
        attempts=attempts,
        attempt=chosen or (attempts[-1] if attempts else None),
        approval=None if gate is None else approval_panel(gate, actor, title),
        script=str(step.config.get("script") or ""),
        log=log,
        rerun=Rerun(view.run) if _may_rerun(view, step) else None,
        debug=_debug(view.run, step),
        queue="" if queue is None else queue_note(queue),
    )


def _debug(run: Run, step: Step) -> str:
    if step.key.kind is not StepKind.SH or step.state is not StepState.FAILED:
        return ""
    return f"sluice debug {run.id} {shlex.quote(step.key.label)}"


def _may_rerun(view: RunView, step: Step) -> bool:
    return view.run.state.terminal and view.may_change and rerunnable(step)


def rerunnable(step: Step) -> bool:
    """Whether a new run may begin with this step: not with one that the platform made."""
    return step.ended_ms is not None and not step.key.name.startswith("$")


def _whole_journal(queries: Queries, actor: Actor, run_id: RunId) -> list[Entry]:
    entries: list[Entry] = []
    while len(entries) < JOURNAL_SCAN_MAX:
        more = queries.journal(actor, run_id, after=len(entries), limit=1000)
        entries.extend(more)
        if len(more) < 1000:
            break
    return entries


def attempts_of(key: StepKey, entries: Sequence[Entry]) -> list[Attempt]:
    """Fold the tries at one step from the journal."""
    attempts: list[Attempt] = []
    ends = {
        EntryKind.ATTEMPT_FAILED: StepState.FAILED,
        EntryKind.STEP_FAILED: StepState.FAILED,
        EntryKind.STEP_PASSED: StepState.PASSED,
        EntryKind.STEP_CANCELLED: StepState.CANCELLED,
    }
    commit = ""
    for entry in entries:
        if entry.kind in (EntryKind.RUN_CREATED, EntryKind.COMMIT_RESOLVED):
            commit = str(entry.data.get("commit", commit))
        if entry.key != key:
            continue
        if entry.kind in (EntryKind.STEP_STARTED, EntryKind.ATTEMPT_STARTED):
            number, at_ms = entry.attempt or len(attempts) + 1, entry.at_ms
            attempts.append(Attempt(number, StepState.RUNNING, at_ms, None, None, None, commit))
        elif entry.kind in ends and attempts and attempts[-1].ended_ms is None:
            attempts[-1] = replace(
                attempts[-1],
                state=ends[entry.kind],
                ended_ms=entry.at_ms,
                error=error_of(entry.data.get("error")),
                retry_ms=entry.data.get("retry_at_ms"),
            )
    return attempts


def error_of(data: Json) -> ErrorInfo | None:
    if not isinstance(data, dict):
        return None
    return ErrorInfo(
        type=str(data.get("type") or "Error"),
        message=str(data.get("message") or ""),
        traceback=str(data.get("traceback") or ""),
        data=data.get("data") or {},
    )


# --- the journal ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EntryRow:
    entry: Entry
    clock: str
    after_ms: int | None
    long: bool


@dataclass(frozen=True, slots=True)
class JournalPage:
    run: Run
    repository: Repository
    rows: Sequence[EntryRow]
    json_href: str
    older_href: str | None
    later_href: str | None


def journal_page(queries: Queries, actor: Actor, run_id: RunId, *, after: int = 0) -> JournalPage:
    view = queries.run_page(actor, run_id)
    entries = queries.journal(actor, run_id, after=after, limit=JOURNAL_SHOWN + 1)
    shown = entries[:JOURNAL_SHOWN]
    here = f"/runs/{run_id}/journal"
    return JournalPage(
        run=view.run,
        repository=view.repository,
        rows=entry_rows(shown),
        json_href=f"{here}.json",
        older_href=here if after > 0 else None,
        later_href=f"{here}?after={shown[-1].seq}" if len(entries) > JOURNAL_SHOWN else None,
    )


def entry_rows(entries: Sequence[Entry]) -> list[EntryRow]:
    rows = []
    before: int | None = None
    for entry in entries:
        at = datetime.fromtimestamp(entry.at_ms / 1000, UTC)
        after_ms = None if before is None else entry.at_ms - before
        clock = f"{at:%H:%M:%S}.{entry.at_ms % 1000:03d}"
        rows.append(EntryRow(entry, clock, after_ms, len(str(entry.data)) > _SHORT_DATA))
        before = entry.at_ms
    return rows
