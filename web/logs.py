"""Logs on pages: which log a page shows, a stretch of it, its end, and searching in it.

Reads through the queries only. Called by run_pages.py, live.py and routes.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ci_platform.errors import StepNotFound
from ci_platform.model import (
    RUN_LOG,
    Actor,
    LogLine,
    Origin,
    Repository,
    Run,
    RunId,
    RunState,
    Step,
    StepKey,
    StepKind,
    StepState,
)
from ci_platform.queries import Queries, RunView
from web.filters import duration, step_path

LOG_LINES_SHOWN = 1000  # lines of a log on one page
LOG_LINES_ON_RUN = 400  # lines of the log on a run's page, which then follows
LOG_SCAN_MAX = 1_000_000  # lines looked at for one search
RAW_BATCH = 5_000  # lines read at once for a raw log or a search
QUERY_CHARS_MAX = 200
_LIVE = (StepState.QUEUED, StepState.RUNNING, StepState.WAITING)


@dataclass(frozen=True, slots=True)
class LogView:
    """A stretch of one step's log, and where the rest is."""

    key: str  # $run, or str(StepKey)
    label: str
    lines: Sequence[LogLine]
    first: int  # number of the first line shown
    last: int
    live: bool
    tail_url: str
    raw_href: str
    page_href: str | None
    step_href: str | None
    earlier_href: str | None
    later_href: str | None
    end: str  # exit code and duration, once it is over
    end_state: str
    empty: str
    origin: Origin | None = None  # the run that wrote it, if it was not this one
    whole: bool = True  # no line is left out in between

    @property
    def parts(self) -> Sequence[Part]:
        return folded(self.lines) if self.whole else self.lines


@dataclass(frozen=True, slots=True)
class Fold:
    """A group of lines, which folds: all of it, or as much as is known."""

    head: LogLine
    lines: Sequence[LogLine]
    done: bool  # its end is known; open until then, for it may be where the command failed


Part = LogLine | Fold


def folded(lines: Sequence[LogLine]) -> list[Part]:
    """Lines, those of a group put together. A group ends with its mark or with the next one's:
    there are none inside of others, however deep a command nests its own."""
    parts: list[Part] = []
    head: LogLine | None = None
    inside: list[LogLine] = []

    def put(*, done: bool) -> None:
        if head is not None:
            parts.append(Fold(head, tuple(inside), done))
        inside.clear()

    for line in lines:
        if line.stream == "group":
            put(done=True)
            head = line
        elif head is None:
            parts.append(line)
        else:
            inside.append(line)
            if line.stream == "endgroup":
                put(done=True)
                head = None
    put(done=False)
    return parts


def log_label(key: str) -> str:
    return "the run" if key == RUN_LOG else StepKey.parse(key).label


def log_view(view: RunView, key: str, lines: Sequence[LogLine], *, page: bool = False) -> LogView:
    run = view.run
    step = find_step(view, key)
    live = not run.state.terminal if step is None else step.state in _LIVE
    known = next((info.lines for info in view.logs if info.step == key), 0)
    first = lines[0].number if lines else 1
    last = lines[-1].number if lines else 0
    base = f"/runs/{run.id}/logs/{step_path(key)}"
    at_end = last >= known
    return LogView(
        key=key,
        label=log_label(key),
        lines=lines,
        first=first,
        last=last,
        live=live and at_end,
        tail_url=f"/runs/{run.id}/tail/{step_path(key)}",
        raw_href=f"/runs/{run.id}/raw/{step_path(key)}",
        page_href=None if page else base,
        step_href=None if step is None else f"/runs/{run.id}/steps/{step_path(key)}",
        earlier_href=f"{base}?before={first}" if first > 1 else None,
        later_href=None if at_end else f"{base}?after={last}",
        end="" if live or not at_end else log_end(run, step, lines),
        end_state="passed" if step is None and run.state is RunState.PASSED else _end(run, step),
        empty=_not_yet(step) if live else _empty(step),
        origin=None if step is None else step.origin,
    )


def _not_yet(step: Step | None) -> str:
    if step is not None and step.state is StepState.QUEUED:
        return "Its command waits for a worker."
    return "Nothing printed yet."


def _empty(step: Step | None) -> str:
    if step is None or step.origin is None:
        return "It printed nothing."
    return f"It printed nothing, or its log is gone with run #{step.origin.number}."


def _end(run: Run, step: Step | None) -> str:
    return (run.state if step is None else step.state).value


def log_end(run: Run, step: Step | None, lines: Sequence[LogLine] = ()) -> str:
    """The last line of a finished log: how it ended and how long it took, unless the worker's own
    last word says so already."""
    if step is None:
        took = None if run.ended_ms is None else run.ended_ms - (run.started_ms or run.created_ms)
        return f"run {run.state}" + (f" after {duration(took)}" if took is not None else "")
    words = [step.state.value]
    if lines and lines[-1].stream == "note" and lines[-1].text.startswith("exited with code "):
        return words[0]
    code = exit_code(step)
    if code is not None:
        words.append(f"exit code {code}")
    if step.ended_ms is not None:
        words.append(duration(step.ended_ms - step.started_ms))
    return ", ".join(words)


def exit_code(step: Step) -> int | None:
    value = step.value if step.error is None else step.error.data
    found = value.get("exit_code") if hasattr(value, "get") else None
    return found if isinstance(found, int) else None


def find_step(view: RunView, key: str) -> Step | None:
    return next((step for step in view.steps if str(step.key) == key), None)


def check_log_key(view: RunView, key: str) -> str:
    """Return the key if the run has such a log or step; raise StepNotFound if not."""
    if key == RUN_LOG or any(info.step == key for info in view.logs):
        return key
    if find_step(view, key) is None:
        raise StepNotFound(f"run #{view.run.number} has no step {key[:100]!r}")
    return key


def chosen_log(view: RunView) -> str | None:
    """The log worth reading: of the step that runs, else that failed, else the last one."""
    logs = {info.step for info in view.logs}
    steps = [step for step in view.steps if step.key.kind in (StepKind.SH, StepKind.DO)]
    for state in (StepState.RUNNING, StepState.QUEUED):
        for step in reversed(steps):
            if step.state is state:
                return str(step.key)
    for step in steps:
        if step.state is StepState.FAILED and str(step.key) in logs:
            return str(step.key)
    for step in reversed(steps):
        if str(step.key) in logs:
            return str(step.key)
    return RUN_LOG if RUN_LOG in logs else None


# --- a log ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogPage:
    run: Run
    repository: Repository
    log: LogView
    here: str
    query: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class LogRange:
    """The query string of a log page: the tail unless it asks for another stretch, or a search."""

    before: int | None = None
    after: int | None = None
    query: str = ""


def log_page(
    queries: Queries, actor: Actor, run_id: RunId, key: str, *, asked: LogRange
) -> LogPage:
    view = queries.run_page(actor, run_id)
    key = check_log_key(view, key)
    query = asked.query.strip()[:QUERY_CHARS_MAX]

    def read(after: int, limit: int) -> list[LogLine]:
        return queries.log(actor, run_id, key, after=after, limit=limit)

    truncated = False
    if query:
        lines, truncated = search(read, query)
    elif asked.before is not None:
        first = max(0, asked.before - 1 - LOG_LINES_SHOWN)
        lines = [line for line in read(first, LOG_LINES_SHOWN) if line.number < asked.before]
    elif asked.after is not None:
        lines = read(max(0, asked.after), LOG_LINES_SHOWN)
    else:
        lines = queries.log_tail(actor, run_id, key, limit=LOG_LINES_SHOWN)
    log = log_view(view, key, lines, page=True)
    if query:
        log = _found(log)
    here = f"/runs/{run_id}/logs/{step_path(key)}"
    return LogPage(view.run, view.repository, log, here, query, truncated)


def _found(log: LogView) -> LogView:
    """A log that shows only what a search found: it neither follows nor has neighbours."""
    return replace(
        log,
        live=False,
        page_href=None,
        earlier_href=None,
        later_href=None,
        end="",
        empty="No line has this.",
        whole=False,
    )


_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def search(read: Callable[[int, int], list[LogLine]], query: str) -> tuple[list[LogLine], bool]:
    """Lines that hold the query, colours aside, in any case; True if there may be more."""
    wanted = query.casefold()
    found: list[LogLine] = []
    at = 0
    while at < LOG_SCAN_MAX:
        lines = read(at, RAW_BATCH)
        if not lines:
            return found, False
        for line in lines:
            if wanted in _ESCAPES.sub("", line.text).casefold():
                found.append(line)
                if len(found) == LOG_LINES_SHOWN:
                    return found, True
        at = lines[-1].number
    return found, True


def raw_name(run: Run, key: str) -> str:
    """A file name for a raw log: plain ASCII, no separators."""
    step = re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.") or "log"
    return f"run-{run.number}-{step[:80]}.log"
