"""`self.env.runs`: other runs of the same repository, from bodies of steps.

What may be done is the host's business; here it only gets its shape. Made by env.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipelines.wire import Json


class Desk(Protocol):
    """Where questions to the host are written and answers read."""

    def ask_in_body(self, capability: str, method: str, **arguments: Json) -> Json:
        """Raises what the author may catch: NotGranted, CapabilityError."""


@dataclass(frozen=True, slots=True)
class RunHandle:
    """A run of this repository; `state` is as it was when the handle was made."""

    id: str
    number: int
    state: str
    _desk: Desk = field(repr=False, compare=False)

    async def status(self) -> dict[str, Json]:
        """All there is to know of it: the JSON of `GET /api/v1/runs/{id}`."""
        found: dict[str, Json] = self._ask("status")
        return found

    async def pause(self) -> RunHandle:
        return _handle(self._ask("pause"), self._desk)

    async def resume(self) -> RunHandle:
        return _handle(self._ask("resume"), self._desk)

    async def cancel(self, *, rollback: bool = False) -> RunHandle:
        return _handle(self._ask("cancel", rollback=rollback), self._desk)

    async def restart(self, *, commit: str | None = None) -> RunHandle:
        """Run it again: the handle is the new run's."""
        return _handle(self._ask("restart", commit=commit), self._desk)

    async def send_event(self, type: str, payload: Json = None) -> RunHandle:
        return _handle(self._ask("send_event", type=type, payload=payload), self._desk)

    async def delete(self) -> None:
        """Remove it, once it has ended."""
        self._ask("delete")

    def _ask(self, method: str, **arguments: Json) -> Json:
        return self._desk.ask_in_body("runs", method, id=self.id, **arguments)


class Runs:
    """The runs of this repository, and no others."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(
        self,
        pipeline: str | None = None,
        params: Json = None,
        *,
        id: str | None = None,
        ref: str | None = None,
        commit: str | None = None,
        resume: str | None = None,
    ) -> RunHandle:
        """Start a run, of this run's ref and commit unless told otherwise. An `id` of yours makes
        it safe to repeat: one that exists is an error that names it."""
        asked = {"pipeline": pipeline, "params": params, "id": id}
        asked |= {"ref": ref, "commit": commit, "resume": resume}
        return _handle(self._desk.ask_in_body("runs", "create", **asked), self._desk)

    async def create_batch(self, runs: Sequence[Mapping[str, Json]]) -> list[RunHandle]:
        """Start up to 100, all or none; ids that exist are left out."""
        asked = [dict(one) for one in runs]
        found = self._desk.ask_in_body("runs", "create_batch", runs=asked)
        return [_handle(one, self._desk) for one in found]

    async def get(self, id: str) -> RunHandle:
        """Raises CapabilityError of type RunNotFound."""
        return _handle(self._desk.ask_in_body("runs", "status", id=id), self._desk)

    async def list(
        self,
        *,
        state: str | None = None,
        pipeline: str | None = None,
        branch: str | None = None,
        limit: int = 100,
    ) -> list[RunHandle]:
        """The newest first."""
        asked = {"state": state, "pipeline": pipeline, "branch": branch, "limit": limit}
        found = self._desk.ask_in_body("runs", "list", **asked)
        return [_handle(one, self._desk) for one in found["runs"]]


def _handle(found: Mapping[str, Json], desk: Desk) -> RunHandle:
    return RunHandle(found["id"], found["number"], found["state"], desk)
