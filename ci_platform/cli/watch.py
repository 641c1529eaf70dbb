"""Following one run through the API: what changed since the last look, told in order.

Polls, because it must work the same over HTTP and in-process; each look goes on where the last one
ended, so a server that is away for a while costs nothing but time. Decides what is news and keeps
no screen: `Listener` does that. Called by main.py, demo.py and local.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ci_platform.cli.client import Client, ClientError, run_path
from ci_platform.errors import InvalidRequest
from ci_platform.model import RUN_LOG, TERMINAL_STATES, Json, StepKey, StepKind

POLL_SECONDS = 0.1
LINES_PER_READ = 1000
ENTRIES_PER_READ = 1000
AWAY = frozenset({0, 502, 503, 504})  # no answer, or none from the server itself
PATIENCE_SECONDS = 60.0  # for a server that is away, once it has been there
AWAY_POLL_SECONDS = 0.5
ENDED = frozenset(state.value for state in TERMINAL_STATES)
SETTLED = frozenset({"passed", "failed", "cancelled"})  # of a step
HIDDEN = frozenset({StepKind.TIMER.value})  # the event loop's own; no step of the author


class Listener(Protocol):
    """Where the news goes. Calls come one at a time, in the order things happened."""

    def step_queued(self, step: Json) -> None:
        """Its command waits for a worker; told once."""

    def step_began(self, step: Json) -> None: ...

    def lines(self, label: str, lines: Sequence[Json]) -> None:
        """`label` is the step's, "" for what the pipeline prints outside steps."""

    def step_ended(self, step: Json) -> None: ...

    def waits(self, run: Json, wait: Json) -> None:
        """Told once for each wait."""

    def run_ended(self, run: Json) -> None: ...


class Silent:
    """A Listener for when only the end matters."""

    def step_queued(self, step: Json) -> None: ...

    def step_began(self, step: Json) -> None: ...

    def lines(self, label: str, lines: Sequence[Json]) -> None: ...

    def step_ended(self, step: Json) -> None: ...

    def waits(self, run: Json, wait: Json) -> None: ...

    def run_ended(self, run: Json) -> None: ...


def step_key(step: Json) -> StepKey:
    return StepKey(StepKind(step["kind"]), step["name"], step["occurrence"])


def step_json(text: str) -> Json:
    """`sh:build#2` as the API takes it."""
    try:
        key = StepKey.parse(text)
    except ValueError as error:
        raise InvalidRequest(str(error), field="step") from error
    return {"kind": key.kind.value, "name": key.name, "occurrence": key.occurrence}


def exit_code(run: Json) -> int:
    """0 if the run passed, 1 if it ended otherwise."""
    return 0 if run["state"] == "passed" else 1


def open_gates(run: Json) -> list[str]:
    """Names of the approvals a run waits for."""
    return [wait["name"] for wait in run["waits"] if wait["kind"] == "approval"]


def read_log(client: Client, run_id: str, step: str, *, after: int = 0) -> Iterator[Json]:
    """The lines of one step's log after line `after`, as far as it has been written."""
    while True:
        answer = client.get(
            run_path(run_id) + "/logs", step=step, after=after, limit=LINES_PER_READ
        )
        yield from answer["lines"]
        if len(answer["lines"]) < LINES_PER_READ:
            return
        after = answer["lines"][-1]["number"]


def entries(
    client: Client, run_id: str, *, after: int = 0, types: Sequence[str] = (), steps: Sequence[str]
) -> Iterator[Json]:
    """The journal's entries behind `after` until the run has ended, each once; of these types and
    steps alone, if any are named. Outlasts a server that is away for PATIENCE_SECONDS."""
    patience = Patience()
    asked = {"type": list(types), "step": list(steps), "limit": ENTRIES_PER_READ}
    while True:
        page = patience.ask(
            partial(client.get, run_path(run_id) + "/journal", after=after, **asked)
        )
        if page is not None:
            yield from page["entries"]
            moved, after = page["cursor"] > after, page["cursor"]
            if page["ended"]:
                return
            if not moved:
                time.sleep(POLL_SECONDS)


class Patience:
    """Asks a server that may be away for a while, such as during an upgrade."""

    def __init__(self) -> None:
        self._there: float | None = None  # when it last answered

    def ask(self, question: Callable[[], Json]) -> Json | None:
        """The answer; None, after a pause, if there is none now. Raises ClientError when it was
        never there, or is away for too long."""
        try:
            answer = question()
        except ClientError as error:
            now = time.monotonic()
            lost = self._there is None or now - self._there > PATIENCE_SECONDS
            if error.status not in AWAY or lost:
                raise
            time.sleep(AWAY_POLL_SECONDS)
            return None
        self._there = time.monotonic()
        return answer


@dataclass(slots=True)
class Watch:
    """One run, as far as it has been told."""

    client: Client
    run_id: str
    listener: Listener
    _queued: set[str] = field(default_factory=set)
    _began: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)
    _waits: set[tuple[str, str, str]] = field(default_factory=set)
    _read: dict[str, int] = field(default_factory=dict)
    _steps: list[Json] = field(default_factory=list)
    _told: int = 0  # of them, the first ones, that have ended
    _over: bool = False

    def look(self) -> Json:
        """Tell what is new; returns the run as the API shows it."""
        run = self.client.get(run_path(self.run_id), steps_after=self._told)
        self._tell_log(RUN_LOG, "")
        run = {**run, "steps": self._tell_steps(run), "steps_cursor": None}
        for wait in run["waits"]:
            identity = (wait["kind"], wait["name"], wait["since"])
            if identity not in self._waits and wait["kind"] not in ("operation", "timer"):
                self._waits.add(identity)
                self.listener.waits(run, wait)
        if run["state"] in ENDED and not self._over:
            self._over = True
            self._tell_log(RUN_LOG, "")
            self.listener.run_ended(run)
        return run

    def until(
        self,
        *,
        stop: Callable[[Json], bool] = lambda run: False,
        seconds: float | None = None,
    ) -> Json:
        """Look until the run has ended, or `stop` says so. Outlasts a server that is away for
        PATIENCE_SECONDS. Raises TimeoutError."""
        end = None if seconds is None else time.monotonic() + seconds
        patience, state = Patience(), "unknown"
        while True:
            run = patience.ask(self.look)
            if run is not None:
                state = run["state"]
                if state in ENDED or stop(run):
                    return run
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"{self.run_id} is still {state} after {seconds:g} s")
            time.sleep(POLL_SECONDS)

    def _tell_steps(self, run: Json) -> list[Json]:
        """Tell of those behind the first ones that have all ended: of these there is nothing new.
        Returns all."""
        page = run
        del self._steps[self._told :]
        while True:
            for step in page["steps"]:
                self._steps.append(step)
                if step["kind"] not in HIDDEN:
                    self._tell_step(step)
            if page["steps_cursor"] is None:
                break
            page = self.client.get(run_path(self.run_id), steps_after=len(self._steps))
        while self._told < len(self._steps) and self._steps[self._told]["state"] in SETTLED:
            self._told += 1
        return list(self._steps)

    def _tell_step(self, step: Json) -> None:
        key = step_key(step)
        name = str(key)
        if name in self._ended:
            return
        if step["state"] == "queued" and name not in self._queued | self._began:
            self._queued.add(name)
            self.listener.step_queued(step)
        if step["state"] != "queued" and name not in self._began:
            self._began.add(name)
            self.listener.step_began(step)
        if key.kind in (StepKind.DO, StepKind.SH, StepKind.SERVICE):
            self._tell_log(name, key.label)
        if step["state"] in SETTLED:
            self._ended.add(name)
            self.listener.step_ended(step)

    def _tell_log(self, name: str, label: str) -> None:
        lines = list(read_log(self.client, self.run_id, name, after=self._read.get(name, 0)))
        if lines:
            self._read[name] = lines[-1]["number"]
            self.listener.lines(label, lines)
