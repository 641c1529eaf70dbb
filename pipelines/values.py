"""What a run is started with (`Event`) and what its steps return. Plain values, read only.

Made from the JSON of the journal by step.py and guest.py, by tests of authors through testing.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pipelines.durations import datetime_of
from pipelines.wire import Json


@dataclass(frozen=True, slots=True)
class Event:
    """Why a run was started, and with what."""

    params: Json = None
    trigger: str = "manual"  # push, tag, pull_request, schedule, manual, api
    ref: str = ""  # refs/heads/main
    branch: str | None = None
    tag: str | None = None
    commit: str = ""
    before: str | None = None  # where the ref was before a push
    message: str = ""  # of the commit
    actor: str = ""  # who caused it
    timestamp: datetime = field(default_factory=lambda: datetime_of(0))
    run_id: str = ""
    number: int = 0
    payload: Json = None  # the raw trigger

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Event:
        """Read the wire's form. Fields of a newer platform are left out."""
        known = {
            name: data[name] for name in cls.__dataclass_fields__ if data.get(name) is not None
        }
        if "timestamp" in known:
            known["timestamp"] = _datetime(known["timestamp"])
        if "branch" not in known and str(known.get("ref", "")).startswith("refs/heads/"):
            known["branch"] = known["ref"].removeprefix("refs/heads/")
        if "tag" not in known and str(known.get("ref", "")).startswith("refs/tags/"):
            known["tag"] = known["ref"].removeprefix("refs/tags/")
        return cls(**known)


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step's body may know of itself: `ctx`."""

    name: str
    count: int  # 1 for the first step of this name, 2 for the second
    attempt: int
    config: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a shell command left behind."""

    exit_code: int
    outputs: Mapping[str, str]  # what it wrote to $CI_OUTPUT
    output_tail: str
    layer: str | None
    duration_ms: int
    from_run: int | None = None  # number of the run that executed it, if it was not this one

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> CommandResult:
        return cls(
            exit_code=data["exit_code"],
            outputs=data.get("outputs") or {},
            output_tail=data.get("output_tail") or "",
            layer=data.get("layer"),
            duration_ms=data.get("duration_ms") or 0,
            from_run=data.get("from_run"),
        )


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run that a step started; without waiting for it, only `id` and `number` are known."""

    id: str
    number: int
    state: str | None = None
    output: Json = None

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ChildRun:
        return cls(data["id"], data["number"], data.get("state"), data.get("output"))


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event that a run waited for."""

    payload: Json
    timestamp: datetime
    type: str

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ReceivedEvent:
        return cls(data.get("payload"), _datetime(data["timestamp"]), data["type"])


@dataclass(frozen=True, slots=True)
class Decision:
    """One person's answer."""

    user: str
    decision: str  # approve, reject
    comment: str
    at: datetime

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Decision:
        return cls(data["user"], data["decision"], data.get("comment") or "", _datetime(data["at"]))


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval that was given."""

    approved: bool
    decisions: Sequence[Decision]
    form: Mapping[str, Json]  # what the last of them filled in

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Approval:
        decisions = tuple(Decision.from_json(one) for one in data.get("decisions") or ())
        return cls(bool(data.get("approved", True)), decisions, data.get("form") or {})


def _datetime(value: Json) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return datetime_of(int(value))
