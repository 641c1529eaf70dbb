"""Runs a pipeline inside a test: no server, no sandbox, no waiting.

    test = PipelineTest(CI, Event(branch="main"))
    test.mock_command("lint", exit_code=0)
    test.approve("deploy to production", user="ann")
    run = test.run()
    assert run.state == "passed" and run.steps["sh:deploy"].state == "passed"

The journal, the replay and the author's code are the real ones; commands, people and the clock are
not. Bodies of `do` steps run for real unless mocked, commands and runs that it starts pass unless
mocked otherwise, services start nothing, and sleeps take no time. `hibernate="always"` replays the
code from the journal at every await, which finds code that does not replay. Unlike in the sandbox,
datetime.now() tells the real time here.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO

from pipelines import errors
from pipelines.checks import one_of
from pipelines.declare import Pipeline, describe
from pipelines.determinism import in_order
from pipelines.durations import Duration, datetime_of, duration_ms
from pipelines.env import Desk, Env
from pipelines.errors import NonRetryable
from pipelines.guest import Output, main
from pipelines.history import Entry, Key
from pipelines.jsontext import encode
from pipelines.replay import Answer, Replay, label
from pipelines.step import Step
from pipelines.testing_env import TestedEnv
from pipelines.testing_fetch import call_fetch
from pipelines.values import Event
from pipelines.wire import VALUE_BYTES_MAX, Json

__all__ = ["PipelineTest", "TestedEnv", "TestedRun", "TestedStep", "call_fetch"]

_PAST: list[Replay] = []  # never dropped: see Replay
TURNS_MAX = 100_000  # activations of one run() call: more is a run that never ends
START = datetime(2030, 1, 1, 12, tzinfo=UTC)
_ENDED = {"failed": "failed", "errored": "errored", "cancelled": "been cancelled"}


@dataclass(slots=True)
class TestedStep:
    """A step as it went."""

    __test__ = False  # pytest: not a test class

    kind: str
    name: str
    occurrence: int
    state: str = "running"  # running, waiting, passed, failed, cancelled
    attempts: int = 1
    config: Mapping[str, Json] = field(default_factory=dict)
    value: Json = None
    error: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class TestedRun:
    """A run as far as it came."""

    __test__ = False

    state: str  # passed, failed, waiting, paused (it did not replay)
    output: Json
    error: Mapping[str, Json] | None  # type, message, traceback
    steps: Mapping[str, TestedStep]  # by label: "sh:lint", "do:build#2"
    waits: Sequence[str]  # labels of what it waits for
    log: str  # what it printed
    elapsed_ms: int  # on the run's own clock
    journal: Sequence[Entry]
    rollback: Mapping[str, Json] | None = None  # outcome (complete, failed) and error


@dataclass(slots=True)
class _Mock:
    name: str
    occurrence: int | None
    value: Json = None
    error: Mapping[str, Json] | None = None
    retryable: bool = True
    times: int | None = None  # an error: so many attempts fail
    duration_ms: int = 0

    def takes(self, key: Key) -> bool:
        return key[1] == self.name and self.occurrence in (None, key[2]) and self.times != 0


class PipelineTest:
    """One run of a pipeline under test. `run` may be called again after more has happened."""

    __test__ = False

    def __init__(
        self,
        pipeline: type[Pipeline],
        event: Event | None = None,
        *,
        hibernate: str = "auto",
        seed: str = "test",
        now: datetime = START,
        files: Mapping[str, str] | None = None,
        changed: Sequence[str] | None = None,
    ) -> None:
        describe(pipeline)
        self._pipeline = pipeline
        self._event = event or Event(timestamp=now)
        self._always = one_of("hibernate", hibernate, ("auto", "always")) == "always"
        self._seed = seed
        self._begun_ms = int(now.timestamp() * 1000)
        self._world = _World(self._begun_ms)
        self._ended: Answer | None = None
        self._failed: Answer | None = None  # and is being rolled back, or was
        self._rollback: Mapping[str, Json] | None = None
        self._env = TestedEnv(files, changed)
        self.kv = self._env.kv  # what self.env.storage holds
        self.sql = self._env.sql
        self.runs = self._env.runs  # the other runs of its repository, self.env.runs

    # --- what happens ---

    def mock_step(self, name: str, result: Json = None, *, occurrence: int | None = None) -> None:
        """A `do` step of this name returns this, and its body does not run."""
        value = json.loads(encode(result, "result", bytes_max=VALUE_BYTES_MAX))
        self._world.mocks["do"].append(_Mock(name, occurrence, value))

    def mock_command(
        self,
        name: str,
        *,
        exit_code: int = 0,
        outputs: Mapping[str, str] | None = None,
        output_tail: str = "",
        duration: Duration = 0,
        occurrence: int | None = None,
    ) -> None:
        """A `sh` step of this name ends so, after so long."""
        took_ms = duration_ms(duration, "duration")
        value = {
            "exit_code": exit_code,
            "outputs": dict(outputs or {}),
            "output_tail": output_tail,
            "layer": None,
            "duration_ms": took_ms,
        }
        self._world.mocks["sh"].append(_Mock(name, occurrence, value, duration_ms=took_ms))

    def mock_run(
        self,
        name: str,
        output: Json = None,
        *,
        state: str = "passed",
        error: str = "",
        duration: Duration = 0,
        occurrence: int | None = None,
    ) -> None:
        """The run that a `step.start` of this name starts ends so, after so long; `error` is what
        ended it, such as "ValueError: wrong". What was asked for is in the `config` of the tested
        step: pipeline and params."""
        one_of("state", state, ("passed", "failed", "errored", "cancelled"))
        value = json.loads(encode(output, "output", bytes_max=VALUE_BYTES_MAX))
        ended = {"state": state, "output": value, "error": error}
        took_ms = duration_ms(duration, "duration")
        self._world.mocks["run"].append(_Mock(name, occurrence, ended, duration_ms=took_ms))

    def mock_error(
        self,
        name: str,
        error: Exception,
        *,
        times: int | None = None,
        occurrence: int | None = None,
    ) -> None:
        """Attempts at a `do` or `sh` step of this name fail so: the first `times`, or all."""
        described = errors.describe(error)
        for kind in ("do", "sh"):
            self._world.mocks[kind].append(
                _Mock(
                    name,
                    occurrence,
                    error=described,
                    retryable=not isinstance(error, NonRetryable),
                    times=times,
                )
            )

    def send_event(self, type: str, payload: Json = None) -> None:
        """An event arrives now; it is kept until the run waits for one of its type."""
        value = json.loads(encode(payload, "payload", bytes_max=VALUE_BYTES_MAX))
        self._world.events.append({"type": type, "payload": value})

    def approve(
        self,
        name: str,
        *,
        user: str = "someone",
        comment: str = "",
        form: Mapping[str, Json] | None = None,
    ) -> None:
        """A person answers the approval of this name, once it is asked for."""
        self._world.decide(name, "approve", user, comment, dict(form or {}))

    def reject(self, name: str, *, user: str = "someone", comment: str = "") -> None:
        """A person says no."""
        self._world.decide(name, "reject", user, comment, {})

    def time_out(self, name: str) -> None:
        """Nobody answers: the wait or approval of this name runs into its timeout."""
        self._world.expired.add(name)

    # --- the run ---

    def run(self) -> TestedRun:
        """Go on until the run ends, or waits for something that was not told to happen. Sleeps,
        timers and the delays of retries pass by themselves."""
        for _ in range(TURNS_MAX):
            if self._ended is not None:
                return self._result()
            self._world.settle()
            answer = self._activate()
            if "raised" in answer and self._failed is None and self._world.roll_back(answer):
                self._failed = answer
            elif "suspended" not in answer:
                self._ended = self._failed or answer
                self._world.cancel_open()
                if self._failed is not None:
                    self._rollback = {"outcome": "complete", "error": None}
                    if "returned" not in answer:
                        self._rollback = {"outcome": "failed", "error": answer.get("raised")}
            elif self._world.idle and not self._world.settle() and not self._world.advance():
                return self._result()
        raise RuntimeError(f"the run goes on for ever: {TURNS_MAX} activations")

    def _activate(self) -> Answer:
        """One activation, from the top, as after a hibernation."""
        world = self._world
        world.add("run_claimed", {})
        entries, world.known, world.idle = list(world.entries), len(world.entries), True
        replay = Replay(host=world, clock=world, entries=entries, always_hibernate=self._always)
        _PAST.append(replay)
        world.screen = sys.stdout
        env = Env(Desk(self._env.ask))
        before = random.getstate()
        random.seed(self._seed)
        try:
            with _printing_to(world, replay), in_order():
                answer = replay.run(lambda: main(self._pipeline, self._event, Step(replay), env))
        finally:
            random.setstate(before)
        if "commands" in answer:
            world.next(json.dumps(answer["commands"]))
        if "suspended" in answer and world.idle:
            world.add("run_suspended", {})
        return answer

    def _result(self) -> TestedRun:
        answer, world = self._ended or {}, self._world
        state, error = "waiting", answer.get("raised")
        if "returned" in answer:
            state = "passed"
        elif error is not None:
            state = "failed"
        elif "mismatch" in answer:
            found = answer["mismatch"]
            said = f"expected {found['expected']}, got {found['got']} (entry {found['seq']})"
            state, error = "paused", {"type": "Nondeterminism", "message": said}
        return TestedRun(
            state=state,
            output=json.loads(json.dumps(answer.get("returned"))),
            error=error,
            steps=dict(world.steps),
            waits=[name for name, step in world.steps.items() if step.state == "waiting"],
            log="".join(world.printed),
            elapsed_ms=world.now_ms - self._begun_ms,
            journal=list(world.entries),
            rollback=self._rollback,
        )


@contextlib.contextmanager
def _printing_to(world: _World, replay: Replay) -> Iterator[None]:
    out, err = Output(world, "stdout"), Output(world, "stderr")
    out.replay = err.replay = replay
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
    out.flush()
    err.flush()


class _World:
    """Host, clock and people of a test: a small engine that journals in memory."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.entries: list[Entry] = []
        self.known = 0  # entries that the code has been given
        self.idle = False  # it has nothing to go on with
        self.mocks: dict[str, list[_Mock]] = {"do": [], "sh": [], "run": []}
        self._children = 0
        self.events: list[dict[str, Json]] = []
        self.expired: set[str] = set()
        self.steps: dict[str, TestedStep] = {}
        self.printed: list[str] = []
        self.screen: TextIO | None = None  # where prints go besides the log
        self._decisions: dict[str, list[dict[str, Json]]] = {}
        self._due: list[tuple[int, int, Key, str]] = []  # (when, order, step, what)
        self._slept = 0.0  # by bodies
        self.add("run_created", {})

    def add(
        self, kind: str, data: Mapping[str, Json], key: Key | None = None, attempt: int = 1
    ) -> None:
        self.entries.append(
            {
                "seq": len(self.entries) + 1,
                "kind": kind,
                "at_ms": self.now_ms,
                "data": data,
                "key": None if key is None else list(key),
                "attempt": None if key is None else attempt,
            }
        )

    def decide(
        self, name: str, decision: str, user: str, comment: str, form: Mapping[str, Json]
    ) -> None:
        answer = {"user": user, "decision": decision, "comment": comment, "form": form}
        self._decisions.setdefault(name, []).append(answer)

    # --- the host ---

    def next(self, commands: str) -> str:
        for command in json.loads(commands):
            key = (command["key"][0], command["key"][1], command["key"][2])
            if command["op"] == "start":
                self._start(key, command["config"])
            elif command["op"] == "finish":
                self._finish(key, command)
            elif self.steps[label(key)].state in ("running", "waiting"):
                self._end(key, "cancelled", {"reason": "abandoned"})
        self.settle()
        found, self.known = self.entries[self.known :], len(self.entries)
        self.idle = not found
        return json.dumps(found)

    def log(self, step: str, stream: str, text: str) -> None:
        self.printed.append(text)
        if self.screen is not None:
            self.screen.write(text)

    # --- the clock ---

    def outside(self, now_ms: int) -> None:
        """Time and randomness of tests are not patched."""

    def inside(self, body: str, seconds: float) -> None:
        """A test's own timeout stops a body that never lets go."""

    def monotonic(self) -> float:
        return time.monotonic() + self._slept

    def sleep(self, seconds: float) -> None:
        self._slept += seconds

    # --- a small engine ---

    def _start(self, key: Key, config: Mapping[str, Json]) -> None:
        kind, step = key[0], TestedStep(*key, config=config)
        self.steps[label(key)] = step
        self.add("step_started", {"config": config}, key)
        if kind in ("do", "sh"):
            self._attempt(key)
            return
        if kind == "service":  # beside nothing: commands do not run here
            return
        step.state = "waiting"
        if kind == "run":
            self._start_run(key, config)
        elif kind in ("sleep", "timer"):
            until = config.get("until_ms", self.now_ms + config.get("duration_ms", 0))
            self._later(until, key, "passed")

    def _attempt(self, key: Key) -> None:
        """An attempt begins; if it is mocked, how it ends is known."""
        step = self.steps[label(key)]
        mock = next((each for each in self.mocks[key[0]] if each.takes(key)), None)
        if mock is None and key[0] == "sh":
            mock = _Mock(key[1], None, {"exit_code": 0, "outputs": {}, "output_tail": ""})
        if mock is None:
            return  # a body, which runs
        if mock.times is not None:
            mock.times -= 1
        if mock.error is not None:
            self._fail(key, mock.error, retryable=mock.retryable)
        elif mock.duration_ms:
            self._later(self.now_ms + mock.duration_ms, key, "command")
            step.value = mock.value
        elif key[0] == "sh":
            self._end_command(key, mock.value)
        else:
            self._end(key, "passed", {"value": mock.value})

    def _start_run(self, key: Key, config: Mapping[str, Json]) -> None:
        """A run of another pipeline: it does not execute, its end is what the mock says."""
        self._children += 1
        child = {"id": f"run_child_{self._children}", "number": self._children}
        if not config["wait"]:
            self._end(key, "passed", {"value": child})
            return
        mock = next((each for each in self.mocks["run"] if each.takes(key)), None)
        ended = {"state": "passed", "output": None} if mock is None else mock.value
        self.steps[label(key)].value = {**child, **ended}
        self._later(self.now_ms + (0 if mock is None else mock.duration_ms), key, "run")

    def _end_run(self, key: Key, value: Mapping[str, Json]) -> None:
        known = {name: value[name] for name in ("id", "number", "state")}
        if value["state"] == "passed":
            self._end(key, "passed", {"value": {**known, "output": value["output"]}})
            return
        said = _ENDED[value["state"]] + (f": {value['error']}" if value["error"] else "")
        message = f"run #{value['number']} of {key[1]!r} has {said}"
        data = {"type": value["error"].partition(":")[0] or value["state"], **known}
        error = {"type": "StepFailed", "message": message, "data": data}
        self._end(key, "failed", {"error": error})

    def _end_command(self, key: Key, value: Mapping[str, Json]) -> None:
        code = value["exit_code"]
        if code == 0 or self.steps[label(key)].config["allow_failure"]:
            self._end(key, "passed", {"value": value})
            return
        data = {"exit_code": code, "output_tail": value["output_tail"], "ended": None}
        message = f"{key[1]} exited with {code}"
        self._fail(key, {"type": "CommandFailed", "message": message, "data": data})

    def _finish(self, key: Key, command: Mapping[str, Json]) -> None:
        if "error" not in command:
            told = ("value", "early_ms")
            self._end(key, "passed", {name: command[name] for name in told if name in command})
            return
        retryable, delay_ms = command["retryable"], command["delay_ms"]
        self._fail(key, command["error"], retryable=retryable, delay_ms=delay_ms)

    def _fail(
        self,
        key: Key,
        error: Mapping[str, Json],
        *,
        retryable: bool = True,
        delay_ms: int | None = None,
    ) -> None:
        step = self.steps[label(key)]
        retries = step.config["retries"]
        if not retryable or step.attempts > retries["limit"]:
            self._end(key, "failed", {"error": error})
            return
        base = retries["delay_ms"] if delay_ms is None else delay_ms
        factor = {"constant": 1, "linear": step.attempts, "exponential": 2 ** (step.attempts - 1)}
        until = self.now_ms + base * factor[retries["backoff"]]
        data = {"error": error, "retry_at_ms": until}
        self.add("attempt_failed", data, key, step.attempts)
        self._later(until, key, "retry")

    def _end(self, key: Key, state: str, data: Mapping[str, Json]) -> None:
        step = self.steps[label(key)]
        step.state, step.value, step.error = state, data.get("value"), data.get("error")
        self.add(f"step_{state}", data, key, step.attempts)

    def roll_back(self, answer: Answer) -> bool:
        """The code failed: have its steps undone. False: there is nothing to undo."""
        begun = [step for step in self.steps.values() if step.config.get("rollback")]
        if not begun:
            return False
        steps = [[step.kind, step.name, step.occurrence] for step in reversed(begun)]
        data = {"error": answer["raised"]}
        self.add("rollback_started", {"steps": steps, "end": "run_failed", "data": data})
        self.cancel_open()
        return True

    def cancel_open(self) -> None:
        """The run has ended: nobody waits for its steps any more."""
        for step in self.steps.values():
            if step.state in ("running", "waiting"):
                step.state = "cancelled"

    def _later(self, when_ms: int, key: Key, what: str) -> None:
        self._due.append((when_ms, len(self.entries), key, what))
        self._due.sort()

    def settle(self) -> bool:
        """Let events and people answer what waits for them. True if anything did."""
        before = len(self.entries)
        for step in list(self.steps.values()):
            if step.state != "waiting":
                continue
            key = (step.kind, step.name, step.occurrence)
            if step.kind == "wait":
                self._match_event(key, step.config["type"])
            elif step.kind == "approval":
                self._match_decisions(key, step.config["required"])
            if step.state == "waiting" and step.name in self.expired:
                message = f"{step.name}: nothing came in time"
                self._end(key, "failed", {"error": {"type": "WaitTimeout", "message": message}})
        return len(self.entries) > before

    def _match_event(self, key: Key, type: str) -> None:
        for event in self.events:
            if event["type"] == type:
                self.events.remove(event)
                value = {**event, "timestamp": datetime_of(self.now_ms).isoformat()}
                self._end(key, "passed", {"value": value})
                return

    def _match_decisions(self, key: Key, required: int) -> None:
        at = datetime_of(self.now_ms).isoformat()
        answers = [{**each, "at": at} for each in self._decisions.get(key[1], ())]
        for answer in answers:
            if answer["decision"] == "reject":
                data = {"user": answer["user"], "comment": answer["comment"]}
                message = f"{answer['user']} rejected {key[1]}"
                error = {"type": "Rejected", "message": message, "data": data}
                self._end(key, "failed", {"error": error})
                return
        if len({answer["user"] for answer in answers}) >= required:
            value = {"approved": True, "decisions": answers, "form": answers[-1]["form"]}
            self._end(key, "passed", {"value": value})

    def advance(self) -> bool:
        """Let time pass until something is due. False: nothing ever is."""
        while self._due:
            when_ms, _, key, what = self._due.pop(0)
            step = self.steps[label(key)]
            if step.state not in ("running", "waiting"):
                continue
            self.now_ms = max(self.now_ms, when_ms)
            if what == "passed":
                self._end(key, "passed", {"value": None})
            elif what == "command":
                self._end_command(key, step.value)
            elif what == "run":
                self._end_run(key, step.value)
            else:
                step.attempts += 1
                self.add("attempt_started", {}, key, step.attempts)
                self._attempt(key)
            return True
        return False
