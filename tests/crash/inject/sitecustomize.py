"""Kills the whole server at one chosen entry of a journal. Loaded by the server's interpreters.

Python imports a module of this name at start, if one lies on its path; only the crash tests put
this one there. It is the power cut: SIGKILL to the supervisor and all that it started, right
before or right after the transaction that holds entry SLUICE_CRASH_AT of run SLUICE_CRASH_RUN.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any

RUN = os.environ.get("SLUICE_CRASH_RUN", "")
AT = int(os.environ.get("SLUICE_CRASH_AT", "0"))
WHEN = os.environ.get("SLUICE_CRASH_WHEN", "after")


def cut_the_power() -> None:
    import psutil

    root = psutil.Process()
    while (above := root.parent()) is not None and "ci_platform.cli" in above.cmdline():
        root = above
    for process in [root, *root.children(recursive=True)]:
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def wrap(store: Any) -> None:
    """Put the trap around the three ways by which entries get into a journal."""
    append, claim, create = store.append, store.claim, store.create

    def trapped(entries: Iterable[Any]) -> None:
        if any(entry.seq == AT for entry in entries):
            cut_the_power()

    def trapped_append(self: Any, what: Any) -> Any:
        first = what.expected_seq + 1
        if WHEN == "before" and what.run_id == RUN and first <= AT < first + len(what.drafts):
            cut_the_power()
        answer = append(self, what)
        if what.run_id == RUN and answer.applied:
            trapped(answer.entries)
        return answer

    def trapped_claim(self: Any, *arguments: Any, **named: Any) -> Any:
        claims = claim(self, *arguments, **named)
        for one in claims:
            if one.run.id == RUN:
                trapped(one.entries[-1:])
        return claims

    def trapped_create(self: Any, new: Any, **named: Any) -> Any:
        runs = create(self, new, **named)
        if AT == 1 and any(run.id == RUN for run in runs):
            cut_the_power()
        return runs

    store.append, store.claim, store.create = trapped_append, trapped_claim, trapped_create


if AT and "ci_platform.cli" in sys.orig_argv:
    from ci_platform.store.runs import SqlRunStore

    wrap(SqlRunStore)
