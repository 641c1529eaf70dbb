"""The moves a run can make: which entry may be written in which state, and where it leads.

The table is closed: a pair that is not in it is a bug of ours, never of the author. `fold` walks
it; docs/states.md shows it and a test holds the two together. The states here are the journal's:
`running` means leased, `waiting` suspended, `queued` that something woke it. What people see adds
two facts to that, see `summary.update`: a suspended run whose command executes is shown as
`running`, and one whose time has come as `queued`.
"""

from __future__ import annotations

from ci_platform.errors import InternalError
from ci_platform.model import EntryKind, RunState

FIRST = EntryKind.RUN_CREATED  # every journal begins with it
INITIAL = RunState.QUEUED

_QUEUED, _RUNNING, _WAITING, _PAUSED = (
    RunState.QUEUED,
    RunState.RUNNING,
    RunState.WAITING,
    RunState.PAUSED,
)

MOVES: dict[tuple[RunState, EntryKind], RunState] = {
    # the lease
    (_QUEUED, EntryKind.RUN_CLAIMED): _RUNNING,
    (_WAITING, EntryKind.RUN_CLAIMED): _RUNNING,  # a timer was due
    (_RUNNING, EntryKind.LEASE_EXPIRED): _QUEUED,
    (_RUNNING, EntryKind.RUN_SUSPENDED): _WAITING,
    # what a run shares with the one that it goes on from; written with its first entry only
    (_QUEUED, EntryKind.COMMIT_RESOLVED): _QUEUED,
    (_QUEUED, EntryKind.STEP_STARTED): _QUEUED,
    # the code of the run, only under the lease
    (_RUNNING, EntryKind.COMMIT_RESOLVED): _RUNNING,
    (_RUNNING, EntryKind.DIVERGED): _RUNNING,
    (_RUNNING, EntryKind.STEP_STARTED): _RUNNING,
    # attempts and ends of steps: by the lease's holder, or by a command's worker at any time
    (_QUEUED, EntryKind.ATTEMPT_STARTED): _QUEUED,
    (_RUNNING, EntryKind.ATTEMPT_STARTED): _RUNNING,
    (_WAITING, EntryKind.ATTEMPT_STARTED): _WAITING,
    (_PAUSED, EntryKind.ATTEMPT_STARTED): _PAUSED,  # a lost command is carried to its end
    (_QUEUED, EntryKind.ATTEMPT_FAILED): _QUEUED,
    (_RUNNING, EntryKind.ATTEMPT_FAILED): _RUNNING,
    (_WAITING, EntryKind.ATTEMPT_FAILED): _WAITING,
    (_PAUSED, EntryKind.ATTEMPT_FAILED): _PAUSED,
    (_QUEUED, EntryKind.STEP_PASSED): _QUEUED,
    (_RUNNING, EntryKind.STEP_PASSED): _RUNNING,
    (_WAITING, EntryKind.STEP_PASSED): _QUEUED,  # wakes the run
    (_PAUSED, EntryKind.STEP_PASSED): _PAUSED,  # delivered when it is resumed
    (_QUEUED, EntryKind.STEP_FAILED): _QUEUED,
    (_RUNNING, EntryKind.STEP_FAILED): _RUNNING,
    (_WAITING, EntryKind.STEP_FAILED): _QUEUED,
    (_PAUSED, EntryKind.STEP_FAILED): _PAUSED,
    (_QUEUED, EntryKind.STEP_CANCELLED): _QUEUED,
    (_RUNNING, EntryKind.STEP_CANCELLED): _RUNNING,
    (_WAITING, EntryKind.STEP_CANCELLED): _WAITING,  # only on the way to run_cancelled
    (_PAUSED, EntryKind.STEP_CANCELLED): _PAUSED,
    # from outside
    (_QUEUED, EntryKind.EVENT_RECEIVED): _QUEUED,
    (_RUNNING, EntryKind.EVENT_RECEIVED): _RUNNING,
    (_WAITING, EntryKind.EVENT_RECEIVED): _WAITING,
    (_PAUSED, EntryKind.EVENT_RECEIVED): _PAUSED,
    (_QUEUED, EntryKind.APPROVAL_DECIDED): _QUEUED,
    (_RUNNING, EntryKind.APPROVAL_DECIDED): _RUNNING,
    (_WAITING, EntryKind.APPROVAL_DECIDED): _WAITING,
    (_PAUSED, EntryKind.APPROVAL_DECIDED): _PAUSED,
    # holding and ending
    (_QUEUED, EntryKind.PAUSE_REQUESTED): _QUEUED,
    (_RUNNING, EntryKind.PAUSE_REQUESTED): _RUNNING,
    (_WAITING, EntryKind.PAUSE_REQUESTED): _WAITING,
    (_QUEUED, EntryKind.RUN_PAUSED): _PAUSED,
    (_RUNNING, EntryKind.RUN_PAUSED): _PAUSED,
    (_WAITING, EntryKind.RUN_PAUSED): _PAUSED,
    (_PAUSED, EntryKind.RUN_RESUMED): _QUEUED,
    (_QUEUED, EntryKind.RUN_RESUMED): _QUEUED,  # withdraws a pause that had not taken hold
    (_RUNNING, EntryKind.RUN_RESUMED): _RUNNING,
    (_WAITING, EntryKind.RUN_RESUMED): _QUEUED,
    (_QUEUED, EntryKind.CANCEL_REQUESTED): _QUEUED,
    (_RUNNING, EntryKind.CANCEL_REQUESTED): _RUNNING,
    (_WAITING, EntryKind.CANCEL_REQUESTED): _WAITING,
    (_PAUSED, EntryKind.CANCEL_REQUESTED): _PAUSED,
    (_QUEUED, EntryKind.ROLLBACK_STARTED): _QUEUED,  # whoever claims it next runs the handlers
    (_RUNNING, EntryKind.ROLLBACK_STARTED): _QUEUED,  # the lease is let go, or taken
    (_WAITING, EntryKind.ROLLBACK_STARTED): _QUEUED,
    (_PAUSED, EntryKind.ROLLBACK_STARTED): _QUEUED,
    (_QUEUED, EntryKind.RUN_CANCELLED): RunState.CANCELLED,
    (_RUNNING, EntryKind.RUN_CANCELLED): RunState.CANCELLED,
    (_WAITING, EntryKind.RUN_CANCELLED): RunState.CANCELLED,
    (_PAUSED, EntryKind.RUN_CANCELLED): RunState.CANCELLED,
    (_RUNNING, EntryKind.RUN_PASSED): RunState.PASSED,
    (_RUNNING, EntryKind.RUN_FAILED): RunState.FAILED,
    (_QUEUED, EntryKind.RUN_FAILED): RunState.FAILED,  # born failed: its file does not load
    (_RUNNING, EntryKind.RUN_ERRORED): RunState.ERRORED,
}


class IllegalMove(InternalError):
    """An entry that the run's state does not allow."""


def move(state: RunState | None, kind: EntryKind) -> RunState:
    """Where `kind` leads from `state`; None is before the first entry. Raises IllegalMove."""
    if state is None:
        if kind is FIRST:
            return INITIAL
        raise IllegalMove(f"a journal begins with {FIRST}, not with {kind}")
    try:
        return MOVES[state, kind]
    except KeyError:
        raise IllegalMove(f"a run that is {state} cannot have {kind}") from None
