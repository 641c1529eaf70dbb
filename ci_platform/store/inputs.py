"""The inputs of runs (payload, event): never changed, so kept for the runs a process works on.

A payload is an envelope, which repeats the run's row. What the row says is left out of the database
and put back when it is read; an envelope that says anything else is kept as it is.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from sqlalchemy import Connection, bindparam, select

from ci_platform.envelope import Dispatch, wrap
from ci_platform.errors import RunNotFound
from ci_platform.model import Json, NewRun, Run
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import RUN_INPUTS

INPUTS_KEPT = 256  # runs
INPUT_BYTES_KEPT = 16 << 10  # packed, each; larger ones are read again

Inputs: TypeAlias = tuple[Mapping[str, Json], Mapping[str, Json]]
_Key: TypeAlias = tuple[str, int]  # repository and number, which are never given out again

_PARAMS = b"\2"  # begins a payload of which only commit and params are kept; no packed value does
_COMMIT = slice(1, 21)  # in bytes: a run may go on at another one than its row began with
_SHA = re.compile("[0-9a-f]{40}")

_READ = Direct(
    select(RUN_INPUTS).where(RUN_INPUTS.c.run_n.in_(bindparam("ns", expanding=True))), each="ns"
)


def pack_payload(new: NewRun) -> bytes:
    """Raises InvalidRequest."""
    dispatch = Dispatch(new.repository_id, new.pipeline, new.ref, new.commit, new.resume.value)
    params = new.payload.get("params")
    if new.payload == wrap(dispatch, params) and _SHA.fullmatch(new.commit):
        return _PARAMS + bytes.fromhex(new.commit) + pack(params, "payload")
    return pack(new.payload, "payload")


def payload_of(data: bytes, run: Run) -> Mapping[str, Json]:
    """What `pack_payload` was given. Raises InternalError for what it never made."""
    if data[:1] != _PARAMS:
        return dict(unpack(data))
    commit = data[_COMMIT].hex()
    dispatch = Dispatch(run.repository_id, run.pipeline, run.ref, commit, run.resume.value)
    return wrap(dispatch, unpack(data[_COMMIT.stop :]))


class InputCache:
    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, Inputs] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, database: Database, n: int, run: Run) -> Inputs:
        """Raises RunNotFound if the run has been deleted meanwhile."""
        kept = self._find(run)
        if kept is not None:
            return kept
        whole = database.read(lambda connection: self.complete(connection, [(n, run)]))[0]
        return whole.payload, whole.event

    def complete(self, connection: Connection, runs: Sequence[tuple[int, Run]]) -> list[Run]:
        """The runs with their inputs, read in one query where they are not kept."""
        found = {n: inputs for n, run in runs if (inputs := self._find(run)) is not None}
        missing = {n: run for n, run in runs if n not in found}
        if missing:
            for row in _READ.rows(connection, {"ns": list(missing)}):
                run = missing[row.run_n]
                found[row.run_n] = inputs = (payload_of(row.payload, run), unpack(row.event))
                if len(row.payload) + len(row.event) <= INPUT_BYTES_KEPT:
                    self._keep(run, inputs)
        gone = [run.id for n, run in runs if n not in found]
        if gone:
            raise RunNotFound(f"{gone[0]} has been deleted")
        return [replace(run, payload=found[n][0], event=found[n][1]) for n, run in runs]

    def _find(self, run: Run) -> Inputs | None:
        key = (run.repository_id, run.number)
        with self._lock:
            inputs = self._kept.get(key)
            if inputs is not None:
                self._kept.move_to_end(key)
        return inputs

    def _keep(self, run: Run, inputs: Inputs) -> None:
        with self._lock:
            self._kept[run.repository_id, run.number] = inputs
            while len(self._kept) > INPUTS_KEPT:
                self._kept.popitem(last=False)
