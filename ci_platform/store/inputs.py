"""The inputs of runs (payload, event): never changed, so kept for the runs a process works on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from sqlalchemy import Connection, bindparam, select

from ci_platform.errors import RunNotFound
from ci_platform.model import Json, Run
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.packing import unpack
from ci_platform.store.tables import RUN_INPUTS

INPUTS_KEPT = 256  # runs
INPUT_BYTES_KEPT = 16 << 10  # packed, each; larger ones are read again

Inputs: TypeAlias = tuple[Mapping[str, Json], Mapping[str, Json]]
_Key: TypeAlias = tuple[str, int]  # repository and number, which are never given out again

_READ = Direct(
    select(RUN_INPUTS).where(RUN_INPUTS.c.run_n.in_(bindparam("ns", expanding=True))), each="ns"
)


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
                found[row.run_n] = inputs = (unpack(row.payload), unpack(row.event))
                if len(row.payload) + len(row.event) <= INPUT_BYTES_KEPT:
                    self._keep(missing[row.run_n], inputs)
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
