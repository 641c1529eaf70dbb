"""Runs the bodies of `do` steps: one task per attempt, with real time, randomness and a timeout.

A body runs exactly when the entry that starts its attempt is delivered and the journal does not
hold how it ended. Its result or error becomes a `finish` command; whether it is tried again is the
host's business. Tasks that a body leaves behind stop with it. Used by replay.py only.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pipelines import errors
from pipelines.durations import duration_ms, show_ms
from pipelines.errors import NonRetryable, NonRetryableDelayError, StepTimeout
from pipelines.history import Key
from pipelines.jsontext import NotJson, encode
from pipelines.loop import BODY, Body, HostLoop
from pipelines.values import StepContext
from pipelines.wire import Json

DELAY_SECONDS_MAX = 5.0  # for a delay function to answer
CLEANUP_SECONDS_MAX = 5.0  # for the `finally` blocks of a body that took too long


@dataclass(frozen=True, slots=True)
class Work:
    """What a `do` step runs: its function, called with ctx, and the delay after a failure."""

    function: Callable[[StepContext], Json]
    delay: Callable[[StepContext, Exception], Json] | None = None


class Run(Protocol):
    """What bodies need of their activation."""

    loop: HostLoop
    value_bytes: int

    def send_finish(self, key: Key, attempt: int, fields: str) -> None: ...

    def send_passed(self, key: Key, attempt: int, value: str, at_ms: int) -> None: ...

    def fail_run(self, error: BaseException) -> None: ...

    def monotonic(self) -> float: ...

    def now_ms(self) -> int: ...


Config: TypeAlias = Mapping[str, Json]


class Bodies:
    def __init__(self, run: Run) -> None:
        self._run = run
        self.running: dict[Key, Body] = {}

    def start(
        self, key: Key, attempt: int, work: Work, config: Config, context: contextvars.Context
    ) -> None:
        """Begin an attempt, in a copy of the context that asked for the step."""
        self.close(key)
        seconds = config["timeout_ms"] / 1000
        begun = self._run.monotonic()
        body = Body(key, attempt, begun + seconds, begun, self._run.now_ms())
        body.until = body.deadline
        self.running[key] = body
        inside = context.copy()
        inside.run(BODY.set, body)
        ctx = StepContext(key[1], key[2], attempt, {**config, "retries": {**config["retries"]}})
        body.task = self._run.loop.create_task(
            self._attempt(body, work, ctx), name=f"{key[0]}:{key[1]}", context=inside
        )
        body.timer = inside.run(self._run.loop.call_later, seconds, self._time_out, body, config)

    def close(self, key: Key) -> None:
        """Stop an attempt where it is: it ended elsewhere, or nobody waits for it."""
        body = self.running.pop(key, None)
        if body is not None:
            body.closed = True

    async def _attempt(self, body: Body, work: Work, ctx: StepContext) -> None:
        try:
            value = work.function(ctx)
            if inspect.isawaitable(value):
                value = await value
            if self._run.monotonic() >= body.deadline:  # a sync body, which no timer can stop
                raise asyncio.CancelledError
        except GeneratorExit:
            raise
        except BaseException as error:  # SystemExit and the like must fail the step, not the loop
            late = self._run.monotonic() >= body.deadline
            if late and isinstance(error, asyncio.CancelledError):
                error = _too_long(body, ctx.config)
            await self._failed(body, work, ctx, error)
        else:
            self._passed(body, value)

    def _passed(self, body: Body, value: Json) -> None:
        what = f"the result of {body.key[0]}:{body.key[1]}"
        try:
            text = encode(value, what, bytes_max=self._run.value_bytes)
        except NotJson as error:
            self._finish(body, _error_fields(error, retryable=False, fatal=True))
            self._run.fail_run(error)
        else:
            if not body.closed:
                took_ms = int((self._run.monotonic() - body.begun) * 1000)
                self._run.send_passed(body.key, body.attempt, text, body.begun_ms + took_ms)
                self.close(body.key)

    async def _failed(self, body: Body, work: Work, ctx: StepContext, error: BaseException) -> None:
        retryable = isinstance(error, (Exception, asyncio.CancelledError)) and not isinstance(
            error, (NonRetryable, MemoryError)
        )
        delay: int | None = None
        if (
            retryable
            and work.delay is not None
            and isinstance(error, Exception)
            and ctx.attempt <= ctx.config["retries"]["limit"]
        ):
            try:
                delay = await self._ask_delay(body, work.delay, ctx, error)
            except Exception as broken:
                error, retryable = _delay_error(ctx, broken), False
        self._finish(body, _error_fields(error, retryable=retryable, delay_ms=delay))

    async def _ask_delay(
        self,
        body: Body,
        function: Callable[[StepContext, Exception], Json],
        ctx: StepContext,
        error: Exception,
    ) -> int:
        """Let the author say how long to wait, within a time of its own."""
        if body.timer is not None:
            body.timer.cancel()
        body.until, body.asking = self._run.monotonic() + DELAY_SECONDS_MAX, True
        late = _delay_error(ctx, TimeoutError(f"no answer within {DELAY_SECONDS_MAX:g} seconds"))
        fields = _error_fields(late, retryable=False)
        self._run.loop.call_later(DELAY_SECONDS_MAX, self._finish, body, fields)
        await asyncio.sleep(0)  # the host learns of the new time before the function begins
        answer = function(ctx, error)
        if inspect.isawaitable(answer):
            answer = await answer
        if self._run.monotonic() >= body.until:
            raise TimeoutError(f"no answer within {DELAY_SECONDS_MAX:g} seconds")
        return duration_ms(answer, "what retries.delay returned")

    def _time_out(self, body: Body, config: Config) -> None:
        if body.task is not None:
            body.task.cancel()
        body.until = self._run.monotonic() + CLEANUP_SECONDS_MAX
        body.timer = self._run.loop.call_later(CLEANUP_SECONDS_MAX, self._overrun, body, config)

    def _overrun(self, body: Body, config: Config) -> None:
        """The body went on in spite of its cancellation."""
        self._finish(body, _error_fields(_too_long(body, config), retryable=True))

    def _finish(self, body: Body, fields: str) -> None:
        if not body.closed:
            self._run.send_finish(body.key, body.attempt, fields)
            self.close(body.key)


def _error_fields(
    error: BaseException, *, retryable: bool, delay_ms: int | None = None, fatal: bool = False
) -> str:
    described = errors.describe(error, data={"fatal": True} if fatal else None)
    fields = {"error": described, "retryable": retryable, "delay_ms": delay_ms}
    return json.dumps(fields, separators=(",", ":"))[1:-1]


def _delay_error(ctx: StepContext, broken: Exception) -> Exception:
    error = NonRetryableDelayError(
        f"the delay function of {ctx.name} failed: {type(broken).__name__}: "
        f"{errors.message_of(broken)}"
    )
    error.__cause__ = broken
    return error


def _too_long(body: Body, config: Config) -> StepTimeout:
    return StepTimeout(
        f"attempt {body.attempt} of {body.key[0]}:{body.key[1]} took longer than its timeout of "
        f"{show_ms(math.ceil(config['timeout_ms']))}"
    )
