"""An asyncio event loop whose only input and output is the host.

It runs ready callbacks, each with the senses (time, randomness, log) of the context it belongs to:
a step's body has real ones, all other code those of the journal. Timers outside bodies are durable
steps; inside bodies they are real. When nothing is ready it simply stops: replay.py decides what
comes next. No threads, sockets, files or subprocesses exist here, and asking for them says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVarTuple

from pipelines.wire import PERIOD_MS_MAX, Json

Args = TypeVarTuple("Args")


@dataclass(eq=False, slots=True)
class Body:
    """One attempt at a step's body. Once closed, nothing that it started runs any more."""

    key: tuple[str, str, int]
    attempt: int
    deadline: float = math.inf  # on the real clock
    begun: float = 0.0  # on the real clock
    begun_ms: int = 0  # on the run's
    until: float = math.inf  # when the host stops it, if it does not let go by itself
    asking: bool = False  # its delay function runs
    closed: bool = False
    timer: asyncio.TimerHandle | None = None  # ends it in good order
    task: asyncio.Task[None] | None = None


BODY: contextvars.ContextVar[Body | None] = contextvars.ContextVar("body", default=None)


class Senses(Protocol):
    """What the loop needs of the run it belongs to."""

    def enter(self, body: Body | None) -> None:
        """Code of this body, or of none, runs next: switch time and randomness."""

    def now_s(self) -> float:
        """The run's logical time, outside bodies."""

    def monotonic(self) -> float:
        """The real clock, inside bodies."""

    def durable_timer(self, duration_ms: int) -> asyncio.Future[Json]:
        """Start a `timer` step."""

    def complain(self, message: str, error: BaseException | None) -> None:
        """Tell the author of an error that no code of theirs can see."""


class Handle:
    """A callback to run: what call_soon returns."""

    __slots__ = ("args", "callback", "context", "stopped")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Json, ...], context: contextvars.Context
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.stopped = False

    def cancel(self) -> None:
        self.stopped = True

    def cancelled(self) -> bool:
        return self.stopped

    def get_context(self) -> contextvars.Context:
        return self.context


class Timer(Handle):
    """A callback to run later: what call_later and call_at return."""

    __slots__ = ("_when", "future")

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Json, ...],
        context: contextvars.Context,
    ) -> None:
        super().__init__(callback, args, context)
        self._when = when
        self.future: asyncio.Future[Json] | None = None  # of the durable step

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        super().cancel()
        if self.future is not None:
            self.future.cancel()

    def fire(self, future: asyncio.Future[Json]) -> None:
        if not self.stopped and not future.cancelled():
            self.callback(*self.args)


class OrderedFuture(asyncio.Future[Json]):
    """A future whose place in a set is where it was made, and not where it lies in memory."""

    def __init__(self, *, number: int, loop: HostLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class OrderedTask(asyncio.Task[Json]):
    """The same of a task. TaskGroup cancels what is in a set, asyncio.wait answers sets, and code
    walks through them: with addresses it would do so in another order each time it is replayed."""

    def __init__(self, coro: Json, *, number: int, loop: HostLoop, **options: Json) -> None:
        self._number = number  # first: to be registered it needs its hash
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


def _own(context: contextvars.Context | None) -> contextvars.Context:
    """The context to run in. An empty one is false, and yet is the one that was meant."""
    return contextvars.copy_context() if context is None else context


class HostLoop(asyncio.AbstractEventLoop):
    """See the module. Made anew for every activation."""

    def __init__(self, senses: Senses) -> None:
        self._senses = senses
        self._ready: deque[Handle] = deque()
        self._real: list[tuple[float, int, Timer]] = []
        self._timers = 0
        self._tasks = 0
        self._futures = 0
        # Code that will never go on is kept: dropping it would run its `finally` blocks.
        self._dropped: list[Handle] = []
        self._alive: list[asyncio.Task[Json]] = []
        self._alive_max = 1_000  # at which those that are done are forgotten

    def forget_ready(self) -> None:
        """Leave the code that could go on where it stands."""
        self._ready.clear()

    def drain(self, main: asyncio.Future[Json] | None) -> None:
        """Run callbacks until none is ready or `main` is done."""
        ready, enter = self._ready, self._senses.enter
        while ready and (main is None or not main.done()):
            handle = ready.popleft()
            if handle.stopped:
                continue
            body = handle.context.get(BODY)
            if body is not None and body.closed:
                self._dropped.append(handle)
                continue
            enter(body)
            try:
                handle.context.run(handle.callback, *handle.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # of a callback, not of a task: nobody awaits it
                self._senses.complain("an error in a callback", error)

    # --- timers ---

    def time(self) -> float:
        if BODY.get() is not None:
            return self._senses.monotonic()
        return self._senses.now_s()

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if not delay > 0:  # NaN too
            delay = 0.0
        timer = Timer(self.time() + delay, callback, args, _own(context))
        if timer.context.get(BODY) is not None:
            self._timers += 1
            heapq.heappush(self._real, (timer.when(), self._timers, timer))
        elif delay == 0:
            self._ready.append(timer)
        elif delay * 1000 > PERIOD_MS_MAX:
            raise ValueError(f"a timer may run for 365 days, got {delay!r} seconds")
        else:
            timer.future = self._senses.durable_timer(math.ceil(delay * 1000))
            timer.future.add_done_callback(timer.fire, context=timer.context)
        return timer  # type: ignore[return-value]  # has all that asyncio uses of a TimerHandle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def next_real(self) -> float | None:
        """When the next timer of a body is due; None if there is none."""
        while self._real:
            when, _, timer = self._real[0]
            body = timer.context.get(BODY)
            if not timer.stopped and (body is None or not body.closed):
                return when
            self._dropped.append(heapq.heappop(self._real)[2])
        return None

    def fire_real(self) -> None:
        """Make the timers of bodies ready that are due."""
        now = self._senses.monotonic()
        while self._real and self._real[0][0] <= now:
            self._ready.append(heapq.heappop(self._real)[2])

    # --- callbacks, futures and tasks ---

    def call_soon(
        self,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = Handle(callback, args, _own(context))
        self._ready.append(handle)
        return handle  # type: ignore[return-value]  # has all that asyncio uses of a Handle

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Json]:
        self._futures += 1
        return OrderedFuture(number=self._futures, loop=self)

    def create_task(
        self,
        coro: Json,
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **options: Json,
    ) -> asyncio.Task[Json]:
        self._tasks += 1  # asyncio's own counter lives as long as the interpreter
        task: Json = OrderedTask(
            coro,
            number=self._tasks,
            loop=self,
            name=str(name or f"Task-{self._tasks}"),
            context=context,
            **options,
        )
        task._log_destroy_pending = False  # a suspended run's tasks end so, and that is no mistake
        self._alive.append(task)
        if len(self._alive) > self._alive_max:
            self._alive = [each for each in self._alive if not each.done()]
            self._alive_max = max(1_000, 2 * len(self._alive))
        return task  # type: ignore[no-any-return]

    def call_exception_handler(self, context: dict[str, Json]) -> None:
        self._senses.complain(str(context.get("message") or ""), context.get("exception"))

    def default_exception_handler(self, context: dict[str, Json]) -> None:
        self.call_exception_handler(context)

    # --- the state that asyncio asks for ---

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: generators end with the sandbox."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there are no threads."""

    # --- what a sandbox does not have ---

    def run_in_executor(  # type: ignore[override]  # it never returns
        self, executor: Json, func: Json, *args: Json
    ) -> Json:
        raise RuntimeError("a pipeline has no threads: call the function, or use step.sh")

    async def subprocess_exec(self, *args: Json, **options: Json) -> Json:
        raise RuntimeError("a pipeline cannot start programs itself: use step.sh")

    async def subprocess_shell(self, *args: Json, **options: Json) -> Json:
        raise RuntimeError("a pipeline cannot start programs itself: use step.sh")

    async def create_connection(self, *args: Json, **options: Json) -> Json:
        raise RuntimeError("a pipeline has no network: use step.sh")

    async def getaddrinfo(self, *args: Json, **options: Json) -> Json:
        raise RuntimeError("a pipeline has no network: use step.sh")
