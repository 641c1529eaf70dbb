"""`self.env.runs` of a pipeline under test: the runs its code starts and changes, in memory.

Nothing of them executes: a test looks at what was asked for, and says itself how they end. Answers
as a platform would, with the same errors. Used by testing_env.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pipelines.wire import Json

ENDED = ("passed", "failed", "errored", "cancelled")
STATES = (*ENDED, "queued", "running", "waiting", "paused")
Arguments: TypeAlias = Mapping[str, Json]


@dataclass(slots=True)
class OtherRun:
    """A run that the code may ask about. A test may set its state, reason and output."""

    id: str
    number: int
    pipeline: str | None = None
    params: Json = None
    ref: str = "refs/heads/main"
    commit: str = ""
    state: str = "queued"
    reason: str | None = None
    output: Json = None
    trigger: str = "run"
    actor: str = "this run"
    events: list[tuple[str, Json]] = field(default_factory=list)  # sent to it: type, payload
    event_ids: dict[str, tuple[str, Json]] = field(default_factory=dict)  # those that had one
    restarted_from: tuple[str, Json] | None = None  # id of the run, and the step if one was named

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def sent_again(self, asked: Arguments) -> dict[str, Json]:
        """The answer to an event that it has already, by its id."""
        if self.event_ids[asked["event_id"]] != (asked["type"], asked.get("payload")):
            known = f"{self.id} has had the event {asked['event_id']!r} with another payload"
            raise RefusedByRuns("Conflict", known)
        return self.told()

    def told(self) -> dict[str, Json]:
        names = ("id", "number", "pipeline", "ref", "commit", "state", "reason", "output")
        return {name: getattr(self, name) for name in names} | {"steps": [], "waits": []}


class RefusedByRuns(Exception):
    """What the author's code gets as CapabilityError."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


class OtherRuns(dict[str, OtherRun]):
    """Runs by id, in order of creation. `add` makes one that is there beforehand."""

    def add(self, id: str, **known: Json) -> OtherRun:
        """`known`: state, pipeline, output and so on."""
        if known.get("state", "queued") not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {known['state']!r}")
        self[id] = run = OtherRun(id, len(self) + 1, **known)
        return run

    def answer(self, method: str, asked: Arguments) -> Json:
        match method:
            case "create":
                return self._create(asked).told()
            case "create_batch":
                new = [one for one in asked["runs"] if one.get("id") not in self]
                return [self._create(one).told() for one in new]
            case "delete_batch":
                return [self._deleted(id) for id in asked["ids"]]
            case "list":
                return self._list(asked)
            case _:
                return self._change(self._found(asked["id"]), method, asked)

    def _found(self, id: str) -> OtherRun:
        if id not in self:
            raise RefusedByRuns("RunNotFound", f"no run has the id {id}")
        return self[id]

    def _create(self, asked: Arguments) -> OtherRun:
        id = asked.get("id") or f"run_{len(self) + 1}"
        if id in self:
            raise RefusedByRuns("RunExists", f"a run with the id {id} exists")
        known = {name: asked[name] for name in ("ref", "commit") if asked.get(name)}
        params = {} if asked.get("params") is None else asked["params"]
        return self.add(id, pipeline=asked.get("pipeline"), params=params, **known)

    def _change(self, run: OtherRun, method: str, asked: Arguments) -> Json:
        if method in ("restart", "delete") and not run.ended:
            raise RefusedByRuns("Conflict", f"{run.id} is {run.state}: it has not ended")
        if method == "send_event" and asked.get("event_id") in run.event_ids:
            return run.sent_again(asked)
        if method in ("pause", "resume", "cancel", "send_event") and run.ended:
            raise RefusedByRuns("Conflict", f"{run.id} has ended ({run.state})")
        match method:
            case "status":
                return run.told()
            case "pause":
                run.state = "paused"
            case "resume" if run.state != "paused":
                raise RefusedByRuns("Conflict", f"{run.id} is not paused")
            case "resume":
                run.state = "queued"
            case "cancel":
                run.state, run.reason = "cancelled", "user"
            case "send_event":
                run.events.append((asked["type"], asked.get("payload")))
                if asked.get("event_id") is not None:
                    run.event_ids[asked["event_id"]] = run.events[-1]
            case "restart":
                again = {"id": asked.get("new_id"), "pipeline": run.pipeline, "params": run.params}
                commit = asked.get("commit") or run.commit
                run, old = self._create({**again, "ref": run.ref, "commit": commit}), run
                run.restarted_from = (old.id, asked.get("from_step"))
            case "delete":
                del self[run.id]
                return None
            case "journal":
                return {"entries": [], "cursor": asked["after"]}
            case "logs":
                return {"lines": []}
            case _:
                raise RefusedByRuns("NotGranted", f"self.env.runs has no {method!r}")
        return run.told()

    def _deleted(self, id: str) -> Json:
        run = self.get(id)
        status = 404 if run is None else 204 if run.ended else 409
        if status == 204:
            del self[id]
        problem = {204: None, 404: "no run has this id", 409: "it has not ended"}[status]
        return {"id": id, "deleted": status == 204, "status": status, "detail": problem}

    def _list(self, asked: Arguments) -> Json:
        newest = [run for run in reversed(self.values()) if _matches(run, asked)]
        start, limit = int(asked.get("cursor") or 0), asked["limit"]
        cursor = str(start + limit) if start + limit < len(newest) else None
        told = [run.told() for run in newest[start : start + limit]]
        return {"runs": told, "cursor": cursor}


def _matches(run: OtherRun, asked: Arguments) -> bool:
    branch = asked.get("branch")
    if branch is not None and run.ref != f"refs/heads/{branch}":
        return False
    if asked.get("state") and run.state not in asked["state"]:
        return False
    wanted = (name for name in ("pipeline", "commit", "trigger", "actor") if asked.get(name))
    return all(getattr(run, name) == asked[name] for name in wanted)
