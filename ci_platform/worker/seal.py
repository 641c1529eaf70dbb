"""The duty of logs whose step has ended and which are still rows: they become objects.

A worker seals each log right after its command. What it did not get to, because it died or because
the object store was away, is done here, and tried again until it is done.
"""

from __future__ import annotations

import logging

from ci_platform.errors import SluiceError
from ci_platform.model import RunId
from ci_platform.worker.settings import Tools

PERIOD_MS = 60_000
SEALED_MAX = 20  # in one turn

_log = logging.getLogger(__name__)


class LogSeal:
    """One worker at a time is enough; any number does no harm."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def run_once(self) -> int:
        """Seal some. Returns how many logs."""
        store = self._tools.store
        if not store.duties.take("seal logs", every_ms=PERIOD_MS):
            return 0
        return sum(self._seal(*one) for one in store.logs.unsealed(limit=SEALED_MAX))

    def _seal(self, run_id: RunId, step: str) -> int:
        """One that cannot be sealed now holds up no other."""
        try:
            return int(self._tools.store.logs.seal(run_id, step))
        except SluiceError as error:
            _log.warning("the log of %s %s stays in the database: %s", run_id, step, error)
            return 0
