"""`self.env.runs`: other runs of the same repository, from bodies of steps.

What may be done is the host's business; here it only gets its shape. Made by env.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from pipelines.durations import Instant, instant_ms
from pipelines.wire import Json

StepName: TypeAlias = tuple[str, str] | tuple[str, str, int]  # kind, name, occurrence


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

    async def restart(
        self,
        *,
        from_step: StepName | None = None,
        commit: str | None = None,
        id: str | None = None,
    ) -> RunHandle:
        """Run it again, once it has ended: the handle is the new run's. From `from_step` on,
        ("sh", "deploy") or ("sh", "deploy", 2), what came before is shared. `commit` is another
        one, or "newest"; an `id` of yours makes it safe to repeat."""
        step = None if from_step is None else _step(from_step)
        return _handle(self._ask("restart", from_step=step, commit=commit, new_id=id), self._desk)

    async def send_event(
        self, type: str, payload: Json = None, *, id: str | None = None
    ) -> RunHandle:
        """Give it an event. An `id` of yours makes it safe to repeat: the run takes it once, and
        another event under the same id is an error."""
        asked = {"type": type, "payload": payload, "event_id": id}
        return _handle(self._ask("send_event", **asked), self._desk)

    async def delete(self) -> None:
        """Remove it, once it has ended."""
        self._ask("delete")

    async def journal(
        self,
        *,
        after: int = 0,
        type: Sequence[str] = (),
        step: Sequence[str] = (),
        limit: int = 1000,
    ) -> Json:
        """{"entries": [...], "cursor": n}: the next entries; those of these types and steps alone.
        Go on with `after=cursor`."""
        asked = {"after": after, "type": list(type), "step": list(step), "limit": limit}
        return self._ask("journal", **asked)

    async def logs(self, step: str = "$run", *, after: int = 0, limit: int = 1000) -> Json:
        """{"lines": [...]} of one log, those after a number: "$run", "sh:build", "do:x#2"."""
        return self._ask("logs", step=step, after=after, limit=limit)

    def _ask(self, method: str, **arguments: Json) -> Json:
        return self._desk.ask_in_body("runs", method, id=self.id, **arguments)


class RunList(list[RunHandle]):
    """A page of runs: a list that knows where the next one begins."""

    def __init__(self, runs: Iterable[RunHandle], cursor: str | None) -> None:
        super().__init__(runs)
        self.cursor = cursor


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
        priority: int = 0,
    ) -> RunHandle:
        """Start a run, of this run's ref and commit unless told otherwise. An `id` of yours makes
        it safe to repeat: one that exists is an error that names it."""
        asked = {"pipeline": pipeline, "params": params, "id": id}
        asked |= {"ref": ref, "commit": commit, "resume": resume, "priority": priority}
        return _handle(self._desk.ask_in_body("runs", "create", **asked), self._desk)

    async def create_batch(self, runs: Sequence[Mapping[str, Json]]) -> list[RunHandle]:
        """Start up to 100, all or none; ids that exist are left out."""
        asked = [dict(one) for one in runs]
        found = self._desk.ask_in_body("runs", "create_batch", runs=asked)
        return [_handle(one, self._desk) for one in found]

    async def get(self, id: str) -> RunHandle:
        """Raises CapabilityError of type RunNotFound."""
        return _handle(self._desk.ask_in_body("runs", "status", id=id), self._desk)

    async def delete_batch(self, ids: Sequence[str]) -> list[dict[str, Json]]:
        """Remove up to 100 that have ended, each on its own. Says of each, in the order asked,
        {"id", "deleted", "status", "detail"}: whether it is gone, and if not, why."""
        found: list[dict[str, Json]]
        found = self._desk.ask_in_body("runs", "delete_batch", ids=list(ids))
        return found

    async def list(
        self,
        *,
        state: str | Sequence[str] | None = None,
        pipeline: str | None = None,
        branch: str | None = None,
        commit: str | None = None,
        trigger: str | None = None,
        actor: str | None = None,
        created_after: Instant | None = None,
        created_before: Instant | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> RunList:
        """The newest first; the answer's `cursor` leads on to older ones, None on the last page."""
        asked = {
            "state": [state] if isinstance(state, str) else list(state or ()),
            "pipeline": pipeline,
            "branch": branch,
            "commit": commit,
            "trigger": trigger,
            "actor": actor,
            "created_after": _ms(created_after, "created_after"),
            "created_before": _ms(created_before, "created_before"),
            "cursor": cursor,
            "limit": limit,
        }
        found = self._desk.ask_in_body("runs", "list", **asked)
        return RunList([_handle(one, self._desk) for one in found["runs"]], found.get("cursor"))


def _step(given: StepName) -> Json:
    if not isinstance(given, tuple) or not 2 <= len(given) <= 3:
        raise TypeError(
            f"from_step must be a tuple of kind, name and occurrence, got {given!r}: "
            'write ("sh", "deploy") for step.sh("deploy", …)'
        )
    kind, name, occurrence = given if len(given) == 3 else (*given, 1)
    return {"kind": kind, "name": name, "occurrence": occurrence}


def _ms(instant: Instant | None, argument: str) -> int | None:
    return None if instant is None else instant_ms(instant, argument)


def _handle(found: Mapping[str, Json], desk: Desk) -> RunHandle:
    return RunHandle(found["id"], found["number"], found["state"], desk)
