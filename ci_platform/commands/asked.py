"""What the code of a run may ask of other runs: `self.env.runs`, for its own repository only.

The same commands that people use, by an actor whose rights end at the repository. What it starts
counts as caused by whoever caused the run itself, so that nobody approves their own work this way.
Composed by app.py; called through the capabilities' port.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ci_platform.commands.repositories import PLAYGROUND
from ci_platform.commands.runs import Runs, StartRun
from ci_platform.errors import InvalidRequest, NotGranted, TooMany
from ci_platform.model import (
    Actor,
    Json,
    RepositoryId,
    Role,
    Run,
    RunId,
    RunState,
    StepKey,
    StepKind,
)
from ci_platform.ports import RunFilter
from ci_platform.ports.granting import Grant
from ci_platform.rates import Rate
from ci_platform.scheduling import PRIORITY_MAX

LIST_MAX = 100
STARTS_PER_SECOND, STARTS_BURST = 20.0, 1_000.0  # runs that one repository's code may start
_START = frozenset({"pipeline", "ref", "commit", "params", "id", "resume", "priority"})
_FILTERS = frozenset({"pipeline", "branch", "commit", "trigger", "actor"})
Status = Callable[[Actor, RunId], Json]  # the JSON of GET /api/v1/runs/{id}
Read = Callable[[Actor, RunId, str, Mapping[str, Json]], Json]  # of its journal, or its logs


@dataclass(frozen=True, slots=True)
class RunsHandler:
    """A capability's handler: (grant, method, arguments) -> JSON. Raises RequestError."""

    runs: Runs
    status: Status
    read: Read
    rate: Rate = field(
        default_factory=lambda: Rate(per_second=STARTS_PER_SECOND, burst=STARTS_BURST)
    )

    def __call__(self, grant: Grant, method: str, arguments: Mapping[str, Json]) -> Json:
        if not grant.trusted:
            raise NotGranted("self.env.runs is not granted to runs of untrusted code")
        if grant.run is not None and not grant.body:
            raise NotGranted("self.env.runs is for bodies of steps")
        actor = _actor(grant)
        match method:
            case "create":
                what = _start(grant, arguments)
                return _known(self.runs.start(actor, *self._starting(grant, 1), what))
            case "create_batch":
                return self._create_batch(grant, actor, arguments)
            case "delete_batch":
                return self._delete_batch(grant, actor, arguments)
            case "list":
                return self._list(grant, arguments)
            case _:
                return self._change(grant, actor, method, arguments)

    def _create_batch(self, grant: Grant, actor: Actor, arguments: Mapping[str, Json]) -> Json:
        wanted = arguments.get("runs")
        if not isinstance(wanted, list) or not all(isinstance(one, Mapping) for one in wanted):
            raise InvalidRequest("runs must be a list of objects", field="runs")
        what = [_start(grant, one) for one in wanted]
        named = self._starting(grant, len(what))
        return [_known(run) for run in self.runs.start_many(actor, *named, what)]

    def _delete_batch(self, grant: Grant, actor: Actor, arguments: Mapping[str, Json]) -> Json:
        _only(arguments, {"ids"})
        deleted = self.runs.delete_many(actor, *self._named(grant), _texts(arguments, "ids"))
        return [one.told() for one in deleted]

    def _list(self, grant: Grant, arguments: Mapping[str, Json]) -> Json:
        _only(arguments, _FILTERS | {"state", "created_after", "created_before", "cursor", "limit"})
        limit = _whole(arguments, "limit", LIST_MAX, least=1, most=LIST_MAX)
        which = RunFilter(
            repository_ids=[grant.repository_id],
            states=_states(arguments.get("state")),
            created_after_ms=_instant(arguments, "created_after"),
            created_before_ms=_instant(arguments, "created_before"),
            **{name: _text(arguments, name) for name in _FILTERS},
        )
        cursor = _text(arguments, "cursor")
        page = self.runs.parts.store.runs.list(which, cursor=cursor, limit=limit)
        return {"runs": [_known(run) for run in page.runs], "cursor": page.cursor}

    def _change(
        self, grant: Grant, actor: Actor, method: str, arguments: Mapping[str, Json]
    ) -> Json:
        run_id = RunId(_text(arguments, "id") or "")
        match method:
            case "status":
                return self.status(actor, run_id)
            case "pause":
                return _known(self.runs.pause(actor, run_id))
            case "resume":
                return _known(self.runs.resume(actor, run_id))
            case "cancel":
                rollback = arguments.get("rollback") is True
                return _known(self.runs.cancel(actor, run_id, rollback=rollback))
            case "restart":
                return self._restart(grant, actor, run_id, arguments)
            case "send_event":
                kind = _text(arguments, "type") or ""
                payload, event_id = arguments.get("payload"), _text(arguments, "event_id")
                return _known(self.runs.send_event(actor, run_id, kind, payload, id=event_id))
            case "delete":
                self.runs.delete(actor, run_id)
                return None
            case "journal" | "logs":
                return self.read(actor, run_id, method, arguments)
            case _:
                raise NotGranted(f"self.env.runs has no {method!r}")

    def _restart(
        self, grant: Grant, actor: Actor, run_id: RunId, arguments: Mapping[str, Json]
    ) -> Json:
        _only(arguments, {"id", "from_step", "commit", "new_id"})
        self._starting(grant, 1)
        run = self.runs.restart(
            actor,
            run_id,
            from_step=_step(arguments.get("from_step")),
            commit=_text(arguments, "commit"),
            id=_text(arguments, "new_id"),
        )
        return _known(run)

    def _starting(self, grant: Grant, count: int) -> tuple[str, str]:
        """The repository's name, if its code may start so many runs now: code that starts itself
        again and again must not fill the server."""
        named = self._named(grant)
        if named[0] == PLAYGROUND:
            raise NotGranted("the playground's runs are started by its button alone")
        wait = self.rate.take(grant.repository_id, time.monotonic(), count=count)
        if wait > 0:
            raise TooMany(f"this repository's code starts too many runs: wait {wait:.1f} seconds")
        return named

    def _named(self, grant: Grant) -> tuple[str, str]:
        repository = self.runs.parts.repositories.by_id(grant.repository_id)
        return repository.owner, repository.name


def _actor(grant: Grant) -> Actor:
    """Whoever caused the run, with rights in its repository and nowhere else."""
    run, repository_id = grant.run, RepositoryId(grant.repository_id)
    name = "its endpoint" if run is None else f"run #{run.number}"
    return Actor(
        kind="user",
        id=(None if run is None else run.actor_id) or (name if run is None else run.id),
        name=name,
        repository_id=repository_id,
        roles={repository_id: Role.MAINTAINER},
    )


def _start(grant: Grant, arguments: Mapping[str, Json]) -> StartRun:
    """What to start; of the same ref as the run that asks, unless told otherwise."""
    _only(arguments, _START)
    ref, commit = _text(arguments, "ref"), _text(arguments, "commit")
    if ref is None and grant.run is not None:
        ref, commit = grant.run.ref, commit or grant.commit
    return StartRun(
        pipeline=_text(arguments, "pipeline"),
        ref=ref,
        commit=commit,
        params={} if arguments.get("params") is None else arguments["params"],
        id=_text(arguments, "id"),
        resume=_text(arguments, "resume"),
        trigger="run",
        priority=_whole(arguments, "priority", 0, least=0, most=PRIORITY_MAX),
    )


def _known(run: Run) -> dict[str, Json]:
    return {"id": run.id, "number": run.number, "state": run.state.value}


def _states(words: Json) -> list[RunState]:
    """One word, or a list of them."""
    named = words if isinstance(words, list) else [] if words is None else [words]
    try:
        return [RunState(word) for word in named]
    except ValueError:
        raise InvalidRequest(f"there is no state {str(words)[:40]!r}", field="state") from None


def _step(given: Json) -> StepKey | None:
    if given is None:
        return None
    try:
        key = StepKey(StepKind(given["kind"]), given["name"], given["occurrence"])
    except (KeyError, TypeError, ValueError):
        known = ", ".join(StepKind)
        problem = f"from_step must be a kind ({known}), a name and an occurrence"
        raise InvalidRequest(problem, field="from_step") from None
    if not isinstance(key.name, str) or not isinstance(key.occurrence, int):
        raise InvalidRequest("from_step: the name is text, the number whole", field="from_step")
    return key


def _instant(arguments: Mapping[str, Json], name: str) -> int | None:
    found = arguments.get(name)
    return None if found is None else _whole(arguments, name, 0, least=0, most=2**53)


def _whole(arguments: Mapping[str, Json], name: str, default: int, *, least: int, most: int) -> int:
    found = arguments.get(name)
    if found is None:
        return default
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise InvalidRequest(f"{name} must be a whole number, {least} to {most:,}", field=name)
    return found


def _texts(arguments: Mapping[str, Json], name: str) -> list[str]:
    found = arguments.get(name)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidRequest(f"{name} must be a list of texts", field=name)
    return found


def _text(arguments: Mapping[str, Json], name: str) -> str | None:
    found = arguments.get(name)
    if found is not None and (not isinstance(found, str) or "\0" in found or len(found) > 1_024):
        raise InvalidRequest(f"{name} must be text of 1,024 characters at most", field=name)
    return found


def _only(arguments: Mapping[str, Json], known: set[str] | frozenset[str]) -> None:
    odd = sorted(set(arguments) - known)
    if odd:
        raise InvalidRequest(f"there is no argument {odd[0][:40]!r}", field=odd[0][:40])
