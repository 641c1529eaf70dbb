"""Does what a plan says at chosen entries of a journal. Loaded by the server's interpreters.

Python imports a module of this name at start, if one lies on its path; only the crash tests put
this one there. SLUICE_CRASH_PLAN is a directory; each file in it is one thing to be done once:

    RUN.SEQ.WHEN    right before or after (WHEN) the first transaction of these processes that
                    brings run RUN to entry SEQ or beyond; the file says what: `power` (SIGKILL to
                    the supervisor and all that it started), `kill` (SIGKILL to this process) or
                    `stop` (SIGSTOP to it). As RUN, `run_` stands for any run whose id nobody chose
    layer.WHERE     where a layer has been packed (`packed`), stored (`stored`), or half restored
                    (`restored`); the file says `kill` or `power`
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROGRAMS = {"ci_platform.cli", "tests.crash.nursery"}
PLAN = Path(os.environ.get("SLUICE_CRASH_PLAN", ""))


def strike(store: Any, run_id: str, seq: int, when: str) -> None:
    """Do what the plan says, if this is where it says so and it is not done yet."""
    named = (run_id, "run_") if run_id.startswith("run_") else (run_id,)
    for planned in [path for name in named for path in PLAN.glob(f"{name}.*.{when}")]:
        if int(planned.name.split(".")[1]) > seq:
            continue
        with contextlib.suppress(FileNotFoundError):
            what = planned.read_text()
            planned.unlink()  # fails for all but the first
            WAYS[what](store)


def rest(store: Any) -> None:
    """Stop this process where it holds no lock of the database. It goes on from here."""
    turn = store._database._turn
    # On SQLite a thread of ours in a transaction would stop everyone: none of them gets into one.
    with contextlib.nullcontext() if turn is None else turn._threads:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)  # another thread takes the signal: it may come a little later


def kill(store: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_the_power(store: Any) -> None:
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


WAYS = {"stop": rest, "kill": kill, "power": cut_the_power}


def strike_layer(where: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        planned = PLAN / f"layer.{where}"
        what = planned.read_text()
        planned.unlink()
        WAYS[what](None)


def wrap_layers(layers: Any) -> None:
    """Put the trap where layers go into objects and come out of them."""
    put, apply = layers.obstore.put, layers.LayerStore._apply

    def trapped_put(objects: Any, path: str, file: Any) -> Any:
        strike_layer("packed")
        answer = put(objects, path, file)
        strike_layer("stored")
        return answer

    def trapped_apply(self: Any, root: int, *arguments: Any) -> Any:
        os.close(os.open("half", os.O_CREAT | os.O_WRONLY, dir_fd=root))
        strike_layer("restored")
        os.unlink("half", dir_fd=root)
        return apply(self, root, *arguments)

    layers.obstore = SimpleNamespace(get=layers.obstore.get, put=trapped_put)
    layers.LayerStore._apply = trapped_apply


def wrap(store: Any) -> None:
    """Put the trap around the three ways by which entries get into a journal."""
    append, claim, create = store.append, store.claim, store.create

    def trapped_append(self: Any, what: Any) -> Any:
        last = what.expected_seq + len(what.drafts)
        strike(self, what.run_id, last, "before")
        answer = append(self, what)
        if answer.applied:
            strike(self, what.run_id, last, "after")
        return answer

    def trapped_claim(self: Any, *arguments: Any, **named: Any) -> Any:
        claims = claim(self, *arguments, **named)
        for one in claims:
            strike(self, one.run.id, one.run.last_seq, "after")
        return claims

    def trapped_create(self: Any, new: Any, **named: Any) -> Any:
        runs = create(self, new, **named)
        for run in runs:
            strike(self, run.id, run.last_seq, "after")
        return runs

    store.append, store.claim, store.create = trapped_append, trapped_claim, trapped_create


if "SLUICE_CRASH_PLAN" in os.environ and PROGRAMS & set(sys.orig_argv):
    from ci_platform.runner import layers
    from ci_platform.store.runs import SqlRunStore

    wrap(SqlRunStore)
    wrap_layers(layers)
