"""Running again from a step: which entries of an old run's journal begin the new one's. Pure.

What had started before the step, and had ended, is shared with its result; the step itself and all
that started after it are left out, and so is what the end of the old run cut short. Events are
shared as far as a shared wait had consumed them. Each shared step says which run executed it, so
that its log is found there. Called by commands/runs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ci_platform.engine.fold import RunView
from ci_platform.engine.rollback import NAME as ROLLBACK
from ci_platform.errors import StepNotFound
from ci_platform.model import Entry, EntryKind, Json, StepKey, StepKind

FIRST_SEQ = 2  # behind run_created
_ENDS = frozenset({EntryKind.STEP_PASSED, EntryKind.STEP_FAILED})


def shared(view: RunView, entries: Sequence[Entry], target: StepKey, commit: str) -> list[Entry]:
    """The entries that a run from `target` on begins with, behind its run_created. `commit` is the
    one whose code goes on. Raises StepNotFound if the old run never came to the step."""
    step = view.steps.get(target)
    if step is None or target.name.startswith(ROLLBACK):
        raise StepNotFound(f"{view.run.id} has not come to the step {str(target)!r}")
    kept = _kept(entries, step.started_seq)
    consumed = {
        entry.data["event"] for entry in entries if entry.key in kept and "event" in entry.data
    }
    found: list[Entry] = []
    numbers: dict[int, int] = {}  # of events: in the old journal, in the new one
    now_at = commit
    resolved = entries[0].data.get("commit", view.run.commit)
    for entry in entries:
        if entry.kind is EntryKind.COMMIT_RESOLVED:
            resolved = entry.data["commit"]
        if entry.seq not in consumed and (entry.key not in kept or entry.kind is _NOTE):
            continue
        if entry.kind in _STARTS and resolved != now_at:
            found.append(_resolved(len(found), entry.at_ms, resolved))
            now_at = resolved
        data = {name: value for name, value in entry.data.items() if name != "early_ms"}
        if entry.kind is EntryKind.STEP_STARTED and "origin" not in data:
            data["origin"] = {"run": view.run.id, "number": view.run.number}
        if "event" in data:
            data["event"] = numbers[data["event"]]
        numbers[entry.seq] = FIRST_SEQ + len(found)
        found.append(replace(entry, seq=FIRST_SEQ + len(found), data=data))
    if now_at != commit:
        found.append(_resolved(len(found), found[-1].at_ms, commit))
    return found


_BLOCK = StepKind.SERVICE  # what is done again inside of it needs it to be open
_NOTE = EntryKind.DIVERGED  # about a step, and true of the old run's code only
_STARTS = frozenset({EntryKind.STEP_STARTED, EntryKind.ATTEMPT_STARTED})


def _kept(entries: Sequence[Entry], before_seq: int) -> set[StepKey]:
    """The steps that started before, and came to an end of their own."""
    started: set[StepKey] = set()
    ended: set[StepKey] = set()
    for entry in entries:
        if entry.key is None:
            continue
        if entry.kind is EntryKind.STEP_STARTED and entry.seq < before_seq:
            started.add(entry.key)
        elif (entry.kind in _ENDS and (entry.key.kind is not _BLOCK or entry.seq < before_seq)) or (
            # Given up by the code that came before, and not by what is done again.
            entry.kind is EntryKind.STEP_CANCELLED and entry.seq < before_seq
        ):
            ended.add(entry.key)
    return started & ended


def _resolved(count: int, at_ms: int, commit: str) -> Entry:
    data: dict[str, Json] = {"commit": commit}
    return Entry(FIRST_SEQ + count, EntryKind.COMMIT_RESOLVED, at_ms, data)
