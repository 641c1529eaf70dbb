"""One activation: replays the journal into the author's code, then asks the host for more.

History is delivered one entry at a time, in journal order, and the code runs until nothing is ready
in between: live and in replay alike, so that the same code makes the same requests in the same
order. A step_started entry is matched against what the code asked for; in strict mode the first
difference is a mismatch. When history ends and nothing is ready, the collected commands go to the
host. Suspension is nothing but returning: no author code is unwound. Called by guest.py and, in the
tests of authors, by testing.py; knows nothing of WebAssembly.

A `do` step completes *early*, before its end is journaled, when no other completion can come before
its own: its `finish` then travels with whatever the code asks for next. The journal says so with
`early_ms`, the time the code was told, so that a replay tells it the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, TypeAlias

from pipelines import errors, rollback
from pipelines.bodies import Bodies, Work
from pipelines.history import ROLLBACK, Entry, History, Key
from pipelines.jsontext import NotJson, encode
from pipelines.loop import Body, HostLoop
from pipelines.outbox import FINISH, Outbox, Passed, command_of
from pipelines.wire import ASKING, TIMER_NAME, VALUE_BYTES_MAX, Json

Answer: TypeAlias = dict[str, Json]
Main: TypeAlias = Callable[[], Coroutine[Json, Json, Json]]

SUSPENDED: Answer = {"suspended": True}
SERVICE = "service"  # the kind of step that ends where its block does


class Host(Protocol):
    """The other side of the wire; see wire.py."""

    def next(self, commands: str) -> str: ...

    def log(self, step: str, stream: str, text: str) -> None: ...


class Clock(Protocol):
    """Switches what the code senses of time and chance, and knows the real clock."""

    def outside(self, now_ms: int) -> None: ...

    def inside(self, body: str, seconds: float) -> None: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class NeverAwaited(Exception):
    """A step was called, but its await forgotten: it would silently not run."""


class NothingToWaitFor(Exception):
    """The code waits for something that no step brings about."""


class _Differs(Exception):
    """History has something else than what the code does."""

    def __init__(self, seq: int, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.answer: Answer = {"mismatch": {"seq": seq, "expected": expected, "got": got}}


@dataclass(eq=False, slots=True)
class Request:
    """A step that the code asked for."""

    key: Key
    config: Mapping[str, Json]
    work: Work | None  # of a `do` step
    context: contextvars.Context
    sent: bool = False  # the host knows of it
    ended: bool = False
    standing: bool = False  # a service inside its block: nobody waits for its end
    abandoned: bool = False  # nobody waits for it any more


class StepFuture(asyncio.Future[Json]):
    """The completion of a step. Cancelling it tells the host that nobody waits any more."""

    def __init__(self, request: Request, replay: Replay) -> None:
        super().__init__(loop=replay.loop)
        self._request = request
        self._replay = replay

    def cancel(self, msg: Json = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._replay.abandon(self._request)
        return cancelled


def label(key: Key) -> str:
    """A step as logs and people name it: do:build, do:build#2."""
    return f"{key[0]}:{key[1]}" if key[2] == 1 else f"{key[0]}:{key[1]}#{key[2]}"


class Replay:
    """See the module. Used once, and kept alive until the sandbox goes: dropping it would close
    suspended coroutines, and the author's `finally` blocks would run."""

    def __init__(
        self,
        *,
        host: Host,
        clock: Clock,
        entries: Sequence[Entry],
        strict: bool = True,
        always_hibernate: bool = False,
        value_bytes: int = VALUE_BYTES_MAX,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self.loop = HostLoop(self)  # type: ignore[abstract]  # only for the type checker
        self.bodies = Bodies(self)
        self.value_bytes = value_bytes
        self.unawaited: dict[int, tuple[str, object]] = {}  # calls whose await has not begun
        self._history = History(entries, strict=strict)
        self._host = host
        self._clock = clock
        self._always_hibernate = always_hibernate
        self._flush = flush
        self._now_ms = 0
        self._seq = 0
        self._asked_host = False
        self._sensed: tuple[Body | None, float] | None = None  # whose senses, and until or since
        self._counts: dict[tuple[str, str], int] = {}
        self._requests: dict[Key, tuple[Request, StepFuture]] = {}
        self._waiting = 0  # requests without an end that somebody waits for
        self._open: dict[Key, Request] = {}  # those that the host knows of and that have no end
        self._asked: deque[Request] = deque()  # strict: not matched yet, in the order asked
        self._finishing = 0  # of those, the ones whose `finish` is in the outbox
        self._out = Outbox()
        self._fatal: Mapping[str, Json] | None = None
        self._main: asyncio.Task[Json] | None = None
        self.undos: dict[Key, rollback.Undo] = {}  # handlers of the steps that the code asked for
        self._undone: Mapping[Key, tuple[Request, StepFuture]] = {}  # what was asked for until then
        self._rolling_back = False

    # --- for step.py ---

    def count(self, kind: str, name: str) -> Key:
        """The key of the next step of this kind and name."""
        occurrence = self._counts.get((kind, name), 0) + 1
        self._counts[kind, name] = occurrence
        return (kind, name, occurrence)

    def request(self, key: Key, config: Mapping[str, Json], work: Work | None = None) -> StepFuture:
        """Ask for a step. The future ends as the journal says."""
        request = Request(key, config, work, contextvars.copy_context())
        self._waiting += 1
        return self._request(request)

    def declare(self, key: Key, config: Mapping[str, Json]) -> None:
        """Begin a service. It ends with `leave`."""
        self._request(Request(key, config, None, contextvars.copy_context(), standing=True))

    def leave(self, key: Key) -> StepFuture:
        """End a service. The future ends when the journal holds that."""
        request, future = self._requests[key]
        if request.standing and not request.ended:
            request.standing = False
            self._waiting += 1
            if request.sent:
                self._opened(request)
            self.send_finish(key, 1, '"value":null')
        return future

    def _request(self, request: Request) -> StepFuture:
        key, config = request.key, request.config
        future = StepFuture(request, self)
        self._requests[key] = (request, future)
        history = self._history
        if history.strict:
            self._asked.append(request)
        else:
            history.ask(key)
            new = key not in history.unmatched and (key, "inserted") not in history.noted
            if new and history.unmatched:
                self._send("diverge", key, change="inserted")
        self._send("start", key, config=config)
        return future

    def result_of(self, key: Key) -> Json:
        """For a rollback: what a step of the code passed with."""
        _, future = self._undone[key]
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    # --- for the futures, the bodies and the loop ---

    def abandon(self, request: Request) -> None:
        request.abandoned = True
        self._waiting -= 1
        self.bodies.close(request.key)
        self._send("abandon", request.key)

    def send_finish(self, key: Key, attempt: int, fields: str) -> None:
        command = f'{{"op":"finish","key":{json.dumps(key)},"attempt":{attempt},{fields}}}'
        self._finish(key, command)

    def send_passed(self, key: Key, attempt: int, value: str, at_ms: int) -> None:
        self._finish(key, Passed(attempt, value, at_ms))

    def _finish(self, key: Key, fields: Passed | str) -> None:
        self._finishing += key in self._open and not self._out.holds(FINISH, key)
        self._out.put(FINISH, key, fields)

    def _opened(self, request: Request) -> None:
        """The host knows of a step that has no end."""
        key = request.key
        self._finishing += key not in self._open and self._out.holds(FINISH, key)
        self._open[key] = request

    def _closed(self, key: Key) -> None:
        if self._open.pop(key, None) is not None:
            self._finishing -= self._out.holds(FINISH, key)

    def fail_run(self, error: BaseException) -> None:
        """End the run at once, whatever the code would like to catch."""
        self._fatal = errors.describe(error)

    def enter(self, body: Body | None) -> None:
        sensed = (body, self._now_ms if body is None else body.until)
        if sensed == self._sensed:
            return
        self._sensed = sensed
        if body is None:
            self._clock.outside(self._now_ms)
        else:
            what = ASKING * body.asking + label(body.key)
            self._clock.inside(what, max(0.0, body.until - self._clock.monotonic()))

    def now_s(self) -> float:
        return self._now_ms / 1000

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def durable_timer(self, duration_ms: int) -> StepFuture:
        return self.request(self.count("timer", TIMER_NAME), {"duration_ms": duration_ms})

    def complain(self, message: str, error: BaseException | None) -> None:
        if self.live:
            text = f"{message}\n" + (errors.traceback_of(error) if error is not None else "")
            self._flush()
            self._host.log("$run", "stderr", errors.clean(text))

    @property
    def live(self) -> bool:
        """Whether the code runs for the first time here, so that what it prints is new."""
        frontier = self._history.frontier
        return self._asked_host or frontier == 0 or self._seq > frontier

    def _send(self, op: str, key: Key, **fields: Json) -> None:
        self._out.put(op, key, fields)

    # --- the activation ---

    def run(self, main: Main) -> Answer:
        """Run until the code returns, fails or suspends. Answers as wire.py says."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            return self._run(main)
        except _Differs as found:
            return found.answer
        except NothingToWaitFor as error:
            return self._ending(_raised(errors.describe(error)))
        finally:
            self._flush()
            asyncio._set_running_loop(outer)

    def _run(self, main: Main) -> Answer:
        while True:
            self._drain()
            if not self._history.rolls_back:  # else the journal goes on behind the code's end
                if self._fatal is not None:
                    return self._ending(_raised(self._fatal))
                if self._main is not None and self._main.done():
                    return self._end(self._main)
            entry = self._history.peek(self._requests)
            if self._main is None and (entry is None or entry["key"] is not None):
                self._begin(main)
            elif entry is not None:
                self._deliver(entry)
                if self._main is None and entry["kind"] == "run_claimed":
                    self._begin(main)
            elif not self._complete_early() and not self._exchange():
                return SUSPENDED

    def _drain(self) -> None:
        try:
            self.loop.drain(self._main)
        except (SystemExit, KeyboardInterrupt) as error:
            self.fail_run(error)

    def _begin(self, main: Main) -> None:
        """Start the author's code: at the run's first claim, so that its clock is right."""
        self._main = self.loop.create_task(main(), name="run")

    def _exchange(self) -> bool:
        """Nothing is ready and history is used up. False: suspend."""
        if self._waiting == 0 and not self.bodies.running and self._out.all_early():
            raise self._stuck()
        commands = self._take_commands()
        if commands or not self.bodies.running:
            if not commands and self._waiting == 0:
                raise self._stuck()
            return self._ask(commands)
        due = self.loop.next_real()
        if due is None:
            raise self._stuck()
        wait = due - self._clock.monotonic()
        if wait > 0:
            self._flush()
            self._clock.sleep(wait)
        self.loop.fire_real()
        return True

    def _complete_early(self) -> bool:
        """Let the code go on with the result of a body that the journal does not hold yet. False:
        there is none, or another completion might come before it there."""
        if self._always_hibernate or self._history.pending:
            return False
        if self._finishing < len(self._open):
            return False  # a step may end at any moment, elsewhere
        found = self._out.next_early()
        if found is None:
            return False
        key, passed = found
        passed.early = True
        passed.at_ms = self._now_ms = max(self._now_ms, passed.at_ms)
        value = {"value": json.loads(passed.value)}
        self._complete(*self._requests[key], "step_passed", value)
        return True

    def _ask(self, commands: Sequence[str]) -> bool:
        """Send commands, learn what came of them. False: the host wants no more."""
        self._flush()
        self._sensed = None  # a body that goes on has its time counted anew by the host
        answer = json.loads(self._host.next(f"[{','.join(commands)}]"))
        if not isinstance(answer, list) or not answer:
            return False
        self._history.learn(answer, asked=self._requests)
        self._asked_host = True
        if not self._always_hibernate or self.bodies.running:
            return True
        return self._history.starts_body(answer)

    def _take_commands(self) -> list[str]:
        """What the host must hear. A step abandoned before the host knew of it never was."""
        commands = []
        for op, key, fields in self._out:
            request, _ = self._requests[key]
            if request.abandoned and not request.sent:
                continue
            if op == "start":
                request.sent = True
                if not request.standing:
                    self._opened(request)
            commands.append(command_of(op, key, fields))
        self._out.clear()
        self._finishing = 0
        if self._asked:
            self._asked = deque(each for each in self._asked if each.sent)
        return commands

    def _end(self, main: asyncio.Task[Json]) -> Answer:
        """The code is done. Tasks that it left behind stop where they are."""
        if self._history.strict:
            for entry in self._history.rest():
                if entry["kind"] == "step_started":
                    self._match(entry, "the end of run()")
        error = asyncio.CancelledError() if main.cancelled() else main.exception()
        if error is None and self.unawaited:
            calls = ", ".join(call for call, _ in self.unawaited.values())
            error = NeverAwaited(
                f"{calls} was called but never awaited: write `await step.…` "
                "(`async with` for a service)"
            )
        if error is None:
            try:
                encode(main.result(), "what run() returned", bytes_max=self.value_bytes)
            except NotJson as found:
                error = found
        if error is not None:
            return self._ending(_raised(errors.describe(error)))
        if not self._note_missing():
            return SUSPENDED
        return self._ending({"returned": main.result()})

    def _ending(self, answer: Answer) -> Answer:
        """An answer that ends the run, with the ends of steps that the host has not heard of."""
        ends = [
            command_of(op, key, ended)
            for op, key, ended in self._out
            if op == FINISH and self._requests[key][0].sent
        ]
        return {**answer, "commands": [json.loads(command) for command in ends]} if ends else answer

    def _note_missing(self) -> bool:
        """Tell of steps in the journal that newer code did not reach. False: the host gave up."""
        history = self._history
        missing = sorted(k for k in history.unmatched if (k, "missing") not in history.noted)
        if history.strict or not missing or self._rolling_back:
            return True
        commands = [{"op": "diverge", "key": key, "change": "missing"} for key in missing]
        return isinstance(json.loads(self._host.next(json.dumps(commands))), list)

    def _stuck(self) -> NothingToWaitFor:
        error = NothingToWaitFor(
            "the code waits, but for no step: a lock, queue, event or future that nothing in this "
            "run will release" + _where(self._main)
        )
        return error

    # --- delivery ---

    def _deliver(self, entry: Entry) -> None:
        self._history.take()
        self._seq = entry["seq"]
        if entry["key"] is not None or self._main is None:
            # Entries of no step let no code go on. Were they to move the clock, one that came
            # behind an early completion, but stands before it, would change what a replay sees.
            self._now_ms = max(self._now_ms, entry["data"].get("early_ms", entry["at_ms"]))
        kind = entry["kind"]
        if kind == "step_started":
            request = self._match(entry, "nothing: it waits")
            self._start_body(request, 1)
        elif kind == "attempt_started":
            found = self._requests.get(tuple(entry["key"]))
            if found is not None:
                self._start_body(found[0], entry["attempt"] or 1)
        elif kind in ("step_passed", "step_failed", "step_cancelled"):
            found = self._requests.get(tuple(entry["key"]))
            if found is not None:
                self._complete(*found, kind, entry["data"])
        elif kind == ROLLBACK:
            self._roll_back(entry)

    def _roll_back(self, entry: Entry) -> None:
        """Leave the author's code where it stands, without unwinding it. From here on only the
        handlers of its steps run."""
        self._history.rolls_back = False
        self._rolling_back, self._fatal = True, None
        for key in list(self.bodies.running):
            self.bodies.close(key)
        self.loop.forget_ready()  # what ended together with the step that failed the run
        self._undone, self._requests = self._requests, {}
        for left in (self._asked, self._out, self._open, self.unawaited):
            left.clear()
        self._waiting = self._finishing = 0
        self._main = self.loop.create_task(rollback.roll_back(self, entry), name="rollback")

    def _match(self, entry: Entry, otherwise: str) -> Request:
        """The request that a step_started entry answers. Raises _Differs."""
        key: Key = tuple(entry["key"])
        if self._history.strict:
            asked = self._asked
            while asked and asked[0].key != key and asked[0].abandoned:
                self._forget(asked.popleft())
            if not asked or asked[0].key != key:
                got = label(asked[0].key) if asked else otherwise
                raise _Differs(entry["seq"], label(key), got)
            request = asked.popleft()
        else:
            request, _ = self._requests[key]
            self._history.unmatched.discard(key)
        request.sent = True
        if not request.standing:
            self._opened(request)
        self._out.drop("start", key)
        return request

    def _forget(self, request: Request) -> None:
        """It was abandoned before the host knew of it, so the host never will."""
        self._out.drop("start", request.key)
        self._out.drop("abandon", request.key)

    def _start_body(self, request: Request, attempt: int) -> None:
        if request.work is None or request.abandoned:
            return
        if not self._history.attempt_is_over(request.key, attempt):
            self.bodies.start(request.key, attempt, request.work, request.config, request.context)

    def _complete(
        self, request: Request, future: StepFuture, kind: str, data: Mapping[str, Json]
    ) -> None:
        if request.ended:  # early
            return
        request.ended = True
        self._closed(request.key)
        self.bodies.close(request.key)
        self._out.drop("abandon", request.key)
        if request.key[0] == SERVICE:
            self._out.drop(FINISH, request.key)
        if future.done():
            return
        self._waiting -= not request.standing
        if kind == "step_passed":
            future.set_result(data.get("value"))
            return
        error = data.get("error") or {
            "type": "StepFailed",
            "message": f"{label(request.key)} was cancelled: {data.get('reason') or 'no reason'}",
            "data": {"type": "Cancelled"},
        }
        if (error.get("data") or {}).get("fatal"):
            self._fatal = error
        future.set_exception(errors.revive(error, label(request.key)))


def _raised(error: Mapping[str, Json]) -> Answer:
    return {"raised": dict(error), "limit": None, "loading": False}


def _where(main: asyncio.Task[Json] | None) -> str:
    """The author's line that a suspended coroutine stands at, as text to append."""
    place = ""
    coroutine: Json = main.get_coro() if main is not None else None
    while coroutine is not None:
        frame: FrameType | None = getattr(coroutine, "cr_frame", None)
        if frame is not None and not errors.is_platform(frame.f_code.co_filename):
            place = f" ({frame.f_code.co_filename}, line {frame.f_lineno})"
        coroutine = getattr(coroutine, "cr_await", None)
    return place
