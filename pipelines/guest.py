"""The entry point inside the sandbox: answers `describe` and `run`, as wire.py says.

It loads the author's files, replays the journal into their pipeline, and turns whatever happens
into an answer. It never raises. Built into the WebAssembly guest by ci_platform.sandbox; plain
Python runs it in tests with a host of their own.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Protocol

from pipelines import errors, fetching, loading
from pipelines.declare import Pipeline
from pipelines.determinism import Senses, real_monotonic
from pipelines.env import Desk, Env
from pipelines.loading import NoPipeline, Sources
from pipelines.loop import BODY
from pipelines.replay import Answer, Replay, label
from pipelines.step import Step
from pipelines.values import Event
from pipelines.wire import VALUE_BYTES_MAX, VERSION, Json

RUN_LOG = "$run"
PENDING_MAX = 8_192  # characters of a print kept back until there is more
BODY_MS_MAX = 366 * 86_400_000  # beyond any timeout
KEPT_MAX = 4  # loaded sources that wait for their next activation
RESERVE_BYTES = 512 * 1024  # given back when memory runs out, so that the error can be told


class GuestHost(Protocol):
    """The functions that the host gives the sandbox."""

    def next(self, commands: str) -> str: ...

    def log(self, step: str, stream: str, text: str) -> None: ...

    def outside(self, now_ms: int) -> None: ...

    def inside(self, body: str, ms: int) -> None: ...

    def sleep(self, ms: int) -> None: ...

    def ask(self, request: str) -> str: ...


class GuestClock:
    """Switches the interpreter's senses, and the host's wall clock with them. Made for each
    activation. Leaving the sandbox for the host costs as much as a hundred lines in it, so nothing
    is told twice."""

    def __init__(self, senses: Senses, host: GuestHost) -> None:
        self._senses = senses
        self._host = host
        self._told_ms: int | None = None  # the time outside bodies that the host knows

    def outside(self, now_ms: int) -> None:
        self._senses.body = False
        self._senses.now_ms = now_ms
        if now_ms != self._told_ms:
            self._told_ms = now_ms
            self._host.outside(now_ms)

    def inside(self, body: str, seconds: float) -> None:
        self._senses.body = True
        self._told_ms = None
        ms = BODY_MS_MAX if math.isinf(seconds) else math.ceil(seconds * 1000)
        self._host.inside(body, ms)

    def monotonic(self) -> float:
        return real_monotonic()

    def sleep(self, seconds: float) -> None:
        self._host.sleep(int(seconds * 1000) + 1)


class Log(Protocol):
    """Where prints go."""

    def log(self, step: str, stream: str, text: str) -> None: ...


class Output(io.TextIOBase):
    """sys.stdout or sys.stderr: text goes to the log of the step that printed it."""

    def __init__(self, host: Log, stream: str) -> None:
        self._host = host
        self._stream = stream
        self._step = RUN_LOG
        self._pending: list[str] = []
        self._size = 0
        self.replay: Replay | None = None
        self.quiet = False  # while loading, in a later activation

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed says attribute
        return "utf-8"

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        body = BODY.get()
        if body is None and (self.quiet if self.replay is None else not self.replay.live):
            return len(text)
        step = RUN_LOG if body is None else label(body.key)
        if step != self._step:
            self.flush()
            self._step = step
        self._pending.append(text)
        self._size += len(text)
        if self._size >= PENDING_MAX:
            self.flush()
        return len(text)

    def flush(self) -> None:
        if self._pending:
            text = errors.clean("".join(self._pending))
            self._pending.clear()
            self._size = 0
            self._host.log(self._step, self._stream, text)


class Guest:
    """One interpreter. Activations come one after the other."""

    def __init__(self, host: GuestHost, senses: Senses) -> None:
        self._host = host
        self._senses = senses
        self._kept: dict[str, Sources] = {}
        self._past: list[object] = []  # suspended code must never be closed, see Replay
        self._reserve: bytearray | None = bytearray(RESERVE_BYTES)

    def activate(self, text: str) -> str:
        """Answer one message of the host."""
        outputs = Output(self._host, "stdout"), Output(self._host, "stderr")
        sys.stdout, sys.stderr = outputs
        self._senses.sleep = lambda seconds: self._host.sleep(int(seconds * 1000) + 1)
        try:
            answer = self._answer(json.loads(text), outputs)
            return json.dumps(answer, separators=(",", ":"))
        except BaseException as error:  # nothing may leave the sandbox but an answer
            self._reserve = None
            return json.dumps(_raised(error, loading=False))
        finally:
            for output in outputs:
                output.flush()

    def _answer(self, message: Mapping[str, Json], outputs: Sequence[Output]) -> Answer:
        if message["v"] != VERSION:
            raise RuntimeError(f"the guest speaks version {VERSION}, not {message['v']}")
        entries: Sequence[Mapping[str, Json]] = message.get("entries", ())
        self._senses.seed(message.get("seed", ""))
        clock = GuestClock(self._senses, self._host)
        clock.outside(_first_claim_ms(entries))
        for output in outputs:
            output.quiet = any(each["kind"] == "step_started" for each in entries)
        try:
            sources = self._sources(message)
            if message["op"] == "fetch":
                return self._fetch(message, sources, clock)
            module = loading.load_module(sources)
            pipelines = loading.declared_in(module)
            if message["op"] == "describe":
                found = loading.describe(pipelines)
                return {"described": {**found, "fetch": fetching.declared(module)}}
            pipeline = loading.named(pipelines, message["pipeline"])
            event = Event.from_json(message["event"])
        except BaseException as error:  # of the author's module: SystemExit and all
            return _raised(error, loading=True)
        replay = self._replay(message, clock, outputs)
        env = Env(Desk(self._host.ask))
        answer = replay.run(lambda: main(pipeline, event, Step(replay), env))
        return {**answer, "reusable": message.get("reuse") is not None and sources.tidy}

    def _fetch(self, message: Mapping[str, Json], sources: Sources, clock: GuestClock) -> Answer:
        """Answer a request to the repository's own endpoint, with a fresh module."""
        clock.inside("fetch", math.inf)  # the request has a limit of its own
        module = loading.load_module(sources)
        try:
            env = Env(Desk(self._host.ask, in_fetch=True))
            answer = fetching.serve(module, fetching.request_of(message["request"]), env, clock)
        except BaseException as error:  # of the author's function: SystemExit and all
            answer = _raised(error, loading=False)
        return {**answer, "reusable": message.get("reuse") is not None and sources.tidy}

    def _sources(self, message: Mapping[str, Json]) -> Sources:
        digest = message.get("reuse")
        if digest is not None and digest in self._kept:
            return self._kept[digest]
        sources = Sources(message["files"])
        if digest is not None:
            while len(self._kept) >= KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            self._kept[digest] = sources
        return sources

    def _replay(
        self, message: Mapping[str, Json], clock: GuestClock, outputs: Sequence[Output]
    ) -> Replay:
        def flush() -> None:
            for output in outputs:
                output.flush()

        replay = Replay(
            host=self._host,
            clock=clock,
            entries=message["entries"],
            strict=message["strict"],
            always_hibernate=message.get("always_hibernate", False),
            value_bytes=message.get("value_bytes", VALUE_BYTES_MAX),
            flush=flush,
        )
        self._past.append(replay)
        for output in outputs:
            output.replay = replay
        return replay


def _first_claim_ms(entries: Sequence[Mapping[str, Json]]) -> int:
    """The time while the module loads: that of the run's first claim."""
    now_ms = 0
    for entry in entries:
        now_ms = entry["at_ms"]
        if entry["kind"] == "run_claimed":
            break
    return now_ms


async def main(pipeline: type[Pipeline], event: Event, step: Step, env: Env) -> Json:
    """The run's main task: the author's code from top to end."""
    made = pipeline()
    made.env = env
    running: Json = made.run(event, step)
    if not isinstance(running, Coroutine):
        raise TypeError(f"{pipeline.__name__}.run must be `async def run(self, event, step)`")
    return await running


def _raised(error: BaseException, *, loading: bool) -> Answer:
    described = errors.describe(error)
    if isinstance(error, NoPipeline):
        described["traceback"] = ""
    return {"raised": described, "limit": None, "loading": loading}
