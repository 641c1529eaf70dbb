"""The limits that decisions enforce, each with the name it has in error messages."""

from __future__ import annotations

from dataclasses import dataclass

DURATION_MS_MAX = 365 * 86_400_000  # of a sleep, a wait, an approval or a timeout
COMMANDS_MAX = 20_000  # asked for in one `next`
ENTRIES_MAX = 1_000_000  # of a journal, when its code asks for more
EVENTS_PENDING_MAX = 1_000  # buffered in a run, not consumed
EVENT_TYPE_MAX = 100  # characters
LIST_MAX = 1_000  # items of a list or mapping in a step's config
TEXT_MAX = 1 << 20  # characters of a script or any other text in a config
ERROR_TEXT_MAX = 64 << 10  # characters kept of an error's message and of its traceback
ERROR_TYPE_MAX = 256  # characters kept of an error's type
LOST_LEASES_MAX = 10  # workers lost in a row, with nothing done, until the run is errored
LOST_COMMANDS_MAX = 5  # workers lost while they executed one command, until it fails
APPROVALS_REQUIRED_MAX = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """Those that an installation may configure; the defaults are `config.py`'s."""

    value_bytes: int = 1 << 20
    steps_max: int = 10_000


GIT_DEPTH_MAX = 10_000  # generations of commits in the .git of a command
