"""Who wakes each run that has not ended: tests fail when there is somebody whom nobody will.

Reads the rows and the journals, and derives from them alone what has to act next: time, a worker, a
command, a child, a person. Then it looks whether that is written where its finder looks for it. It
may be asked whenever no worker is in the middle of something. Used at the end of tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from ci_platform.engine.fold import RunView, StepView, fold
from ci_platform.model import Entry, EntryKind, Run, RunState, StepKind
from ci_platform.ports import RunFilter, Store
from ci_platform.scheduling import Hold
from ci_platform.store import SqlStore
from ci_platform.testing.store import InMemoryStore

LIVE = [state for state in RunState if not state.terminal]
PAGE = 500
RUNS_MAX = 20_000  # looked at

Commands = Mapping[str, Sequence[Any]]  # by run; each has id, state, step, due, worker, lease


def forgotten(store: Store, now_ms: int) -> list[str]:
    """What is wrong with each run that has not ended and that nobody will ever wake."""
    runs = _live(store)
    commands = _commands(store)
    found = []
    for run in runs:
        entries = store.runs.journal(run.id)
        problem = _problem(store, run, entries, commands.get(run.id, ()), runs, now_ms)
        if problem is not None:
            last = [f"{one.kind} {one.key or ''}".strip() for one in entries[-8:]]
            found.append(f"{run.id} ({run.state}): {problem}; its journal ends {last}")
    return found


def check_nobody_is_forgotten(store: Store, now_ms: int) -> None:
    """Raises AssertionError naming the runs."""
    found = forgotten(store, now_ms)
    assert not found, "nobody will ever wake these:\n" + "\n".join(found)


def _live(store: Store) -> list[Run]:
    runs: list[Run] = []
    cursor = None
    while len(runs) < RUNS_MAX:
        page = store.runs.list(RunFilter(states=LIVE), cursor=cursor, limit=PAGE)
        runs += page.runs
        cursor = page.cursor
        if cursor is None:
            break
    return runs


def _problem(
    store: Store,
    run: Run,
    entries: Sequence[Entry],
    commands: Sequence[Any],
    runs: Sequence[Run],
    now_ms: int,
) -> str | None:
    for command in commands:
        if command.state == "queued" and command.due_ms is None:
            return f"its command {command.id} is queued and never due"
        if command.state == "running" and (command.worker is None or command.until_ms is None):
            return f"its command {command.id} executes without a lease that could run out"
    if run.worker is not None:
        return None if run.lease_until_ms is not None else "its lease never runs out"
    if run.state is RunState.PAUSED:
        return None  # a person resumes it
    if run.hold is not None:
        return _held(run, runs)
    view = fold(run, entries)
    due_ms, waits = _due(store, view, entries, commands, now_ms)
    if due_ms is not None and (run.ready_ms is None or run.ready_ms > max(due_ms, now_ms)):
        return f"it has to be claimed at {due_ms}, and is due at {run.ready_ms}"
    if due_ms is None and not waits:
        return "nothing moves it"
    return next((one for one in waits.values() if one is not None), None)


def _due(
    store: Store,
    view: RunView,
    entries: Sequence[Entry],
    commands: Sequence[Any],
    now_ms: int,
) -> tuple[int | None, dict[str, str | None]]:
    """When a worker has to claim the run, at the latest; and what else moves it: step -> what is
    wrong with that."""
    if view.pause_requested and view.commands:
        return None, {str(key): _command(step, commands) for key, step in view.commands.items()}
    if view.state is RunState.QUEUED or view.pause_requested or _undelivered(entries):
        return now_ms, {}
    times = [view.deadline_ms]
    waits: dict[str, str | None] = {}
    for key, step in view.open.items():
        match key.kind:
            case StepKind.SH:
                waits[str(key)] = _command(step, commands)
            case StepKind.RUN:
                waits[str(key)] = _child(store, view, step)
            case StepKind.SERVICE:
                continue  # it lives as long as what is around it
            case StepKind.DO if not step.retrying:
                times.append(now_ms)  # its body was cut short
            case _:
                times.append(step.until_ms)
                if step.until_ms is None:
                    waits[str(key)] = _person(store, view, step)
    return min((ms for ms in times if ms is not None), default=None), waits


def _undelivered(entries: Sequence[Entry]) -> bool:
    """Whether steps have ended since the code was let go, which lets it go on."""
    for entry in reversed(entries):
        if entry.kind in (EntryKind.RUN_SUSPENDED, EntryKind.RUN_CLAIMED):
            return False
        if entry.kind in (EntryKind.STEP_PASSED, EntryKind.STEP_FAILED):
            return True
    return False


def _command(step: StepView, commands: Sequence[Any]) -> str | None:
    label = (step.key.name, step.key.occurrence)
    mine = [one for one in commands if one.step == label and one.state != "done"]
    return None if mine else f"no command is queued or executes for {step.key}"


def _child(store: Store, view: RunView, step: StepView) -> str | None:
    links = [one for one in store.family.children(view.run.id) if one.kin.step == str(step.key)]
    if not links:
        return f"the run that {step.key} waits for is gone"
    child = store.runs.get(links[0].child_id)  # type: ignore[arg-type]
    if child.state.terminal and links[0].due == 0:
        return f"{child.id} has ended and nobody will tell {step.key}"
    return None


def _person(store: Store, view: RunView, step: StepView) -> str | None:
    if step.key.kind is StepKind.WAIT:
        pending = view.events.get(str(step.config["type"]))
        return f"{step.key} does not take the event that is there" if pending else None
    gates = [one for one in store.approvals.of_run(view.run.id) if one.key == step.key]
    if not gates or gates[0].outcome is not None:
        return f"nobody is asked for {step.key}"
    return None


def _held(run: Run, runs: Sequence[Run]) -> str | None:
    """Who has a slot is alive, and gives it on at its end."""
    same = [one for one in runs if one.repository_id == run.repository_id]
    if run.hold is Hold.LIMIT:
        # An empty repository may still wait for the others: the duty of expiry lets it go then.
        return None
    group = [one for one in same if one.place.group == run.place.group]
    begun = [one for one in group if one.hold is not Hold.GROUP]
    if any(one.hold is Hold.GROUP and one.number < run.number for one in group):
        return None  # it goes after those, whatever limit its own code has set
    if len(begun) >= run.place.limit or run.state is not RunState.QUEUED:
        return None
    return f"it waits for a slot of {run.place.group!r}, of which {len(begun)} are taken"


# --- commands, which no port lists ----------------------------------------------------------------


class _Command:
    """A row of an operation."""

    def __init__(self, id: str, state: str, step: tuple[str, int], worker: str | None) -> None:
        self.id = id
        self.state = state
        self.step = step
        self.worker = worker
        self.due_ms: int | None = None
        self.until_ms: int | None = None


def _commands(store: Store) -> Commands:
    found: dict[str, list[_Command]] = defaultdict(list)
    if isinstance(store, InMemoryStore):
        for one in list(store.operations._tables.operations.values()):
            label = (one.key.name, one.key.occurrence)
            command = _Command(one.id, one.state.value, label, one.worker)
            command.due_ms, command.until_ms = one.ready_ms, one.lease_until_ms
            found[one.run_id].append(command)
        return found
    assert isinstance(store, SqlStore), store
    rows = (
        "SELECT id, run_id, state, step_name, occurrence, worker, due_ms, lease_until_ms"
        " FROM operations WHERE state != 'done'"
    )
    with store.engine.connect() as connection:
        for row in connection.execute(text(rows)):
            label = (row.step_name, row.occurrence)
            command = _Command(row.id, row.state, label, row.worker)
            command.due_ms, command.until_ms = row.due_ms, row.lease_until_ms
            found[row.run_id].append(command)
    return found
