"""The engine: pure decisions on a run's journal. No clock, no socket, no database.

    view = fold(run, entries)                  what the journal means
    decision = pause(view, actor, now_ms)      what to add to it; empty: nothing
    append = propose(view, decision, now_ms)   for RunStore.append

A decision moves `view` forward as if it were written. When the append is refused (`applied` is
False), fold again with what is new and decide again; never reuse the view.
"""

from ci_platform.engine.accept import accept
from ci_platform.engine.check import check_event_type
from ci_platform.engine.children import Child, child_ended, unwanted
from ci_platform.engine.decision import Decision, Pen, propose
from ci_platform.engine.endings import (
    check_value,
    errored,
    mismatched,
    raised,
    refused,
    returned,
    unreadable,
)
from ci_platform.engine.fold import LOST_WORKER, RunView, StepView, fold
from ci_platform.engine.ids import derived_id, new_id, seed_of, stable_id
from ci_platform.engine.limits import Limits
from ci_platform.engine.operations import (
    LOST_RETRY_MS,
    command_finished,
    command_lost,
    command_of,
    command_started,
)
from ci_platform.engine.outside import Answer, cancel, decided, event_sent, pause, resume
from ci_platform.engine.settle import bodies_lost, body_overran, iso, settle
from ci_platform.engine.summary import REDACTED, shown, steps, update, waits
from ci_platform.engine.transitions import MOVES, IllegalMove, move

__all__ = [
    "LOST_RETRY_MS",
    "LOST_WORKER",
    "MOVES",
    "Answer",
    "Child",
    "Decision",
    "IllegalMove",
    "Limits",
    "Pen",
    "REDACTED",
    "RunView",
    "StepView",
    "accept",
    "bodies_lost",
    "body_overran",
    "cancel",
    "check_event_type",
    "child_ended",
    "check_value",
    "command_finished",
    "command_lost",
    "command_of",
    "command_started",
    "decided",
    "derived_id",
    "errored",
    "event_sent",
    "fold",
    "iso",
    "mismatched",
    "move",
    "new_id",
    "pause",
    "propose",
    "raised",
    "refused",
    "resume",
    "returned",
    "seed_of",
    "settle",
    "shown",
    "stable_id",
    "steps",
    "unreadable",
    "unwanted",
    "update",
    "waits",
]
