"""How a command changes a run: read, decide, append, and decide again when it was refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ci_platform.commands.parts import Parts
from ci_platform.engine.decision import Decision, propose
from ci_platform.engine.fold import RunView, fold
from ci_platform.errors import Conflict
from ci_platform.model import AuditNote, Run, RunId

Decide = Callable[[RunView, int], Decision]


def change(
    parts: Parts, run_id: RunId, decide: Decide, *, note: AuditNote | None = None
) -> tuple[Run, bool]:
    """Apply a decision of the engine to a run, with the audit's note of who asked for it; False
    when there was nothing to change.

    Raises what `decide` raises, and Conflict when the run changes faster than one can look.
    """
    run = parts.store.runs.get(run_id)
    entries = list(parts.store.runs.journal(run_id))
    for _ in range(parts.limits.append_tries):
        now_ms = parts.clock.now_ms()
        view = fold(run, entries)
        decision = decide(view, now_ms)
        if not decision:
            return run, False
        append = replace(propose(view, decision, now_ms), note=note)
        appended = parts.store.runs.append(append)
        run = appended.run
        if appended.applied:
            return run, True
        entries += appended.entries
    raise Conflict(f"{run_id} changes too fast; try again")
