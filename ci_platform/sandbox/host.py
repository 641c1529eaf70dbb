"""wasmtime: instances of the guest, and the functions the platform gives them. Runs in the child.

A host function never raises: wasmtime-py would keep the exception and hand it to somebody else's
call. Memory and CPU time are limited here, and a trap becomes a `Trap` with a word for its limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from wasmtime import Engine, Store, WasiConfig, WasmtimeError
from wasmtime.component import Component, Linker, Record

from ci_platform.model import Json
from ci_platform.sandbox.machine import pooled_config
from ci_platform.sandbox.upcalls import add_function

HOST = "sluice:pipeline/host@1.0.0"
WALL_CLOCK = "wasi:clocks/wall-clock@0.2.9"
UNANSWERED = '{"error":{"type":"NotGranted","message":"nobody is there to answer"}}'
TICK_SECONDS = 0.02  # how exactly CPU time is measured
IDLE_TICKS_MAX = 50  # without an activation, until it is measured no more
BODY_GRACE_SECONDS = 1.0  # for a step's body to end in good order when its time is over
BODY_MS_MAX = 366 * 86_400_000  # beyond any timeout
BODY_NAME_MAX = 600  # characters


class Calls(Protocol):
    """What the guest may ask for. Nothing here may raise."""

    def next(self, commands: str) -> str: ...

    def log(self, step: str, stream: str, text: str) -> None: ...

    def sleep(self, ms: int) -> None: ...

    def ask(self, request: str) -> str: ...


class Trap(Exception):
    """The guest was stopped. `kind` is cpu, timeout (`detail` is the body), recursion, exit or
    crash."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Instance:
    """One isolated interpreter."""

    def __init__(self, store: Store, activate: Callable[..., str]) -> None:
        self.store = store
        self.activate = activate

    def close(self) -> None:
        self.store.close()


class Machine:
    """The compiled guest, and what all its instances share. For one thread."""

    def __init__(self, guest: Path, *, memory_bytes: int, cpu_seconds: float) -> None:
        self._engine = Engine(pooled_config(memory_bytes=memory_bytes))
        self._memory_bytes = memory_bytes
        self._cpu_seconds = cpu_seconds
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._cpu_until = float("inf")
        self._body = False
        self._now_ms = 0
        self._body_name = ""
        self._body_until = float("inf")  # on the monotonic clock
        self._overran = False  # the body named had to be stopped
        self.calls: Calls | None = None  # of the activation that executes
        self._resting = False  # the thread that ticks waits for the next one
        self._wake = threading.Event()
        self._component = Component.deserialize_file(self._engine, str(guest))
        self._linker = self._link()
        threading.Thread(target=self._tick, name="epochs", daemon=True).start()

    def _link(self) -> Linker:
        linker = Linker(self._engine)
        linker.allow_shadowing = True
        linker.add_wasip2()
        with linker.root() as root:
            with root.add_instance(HOST) as host:
                self._upcalls = [
                    add_function(host, "next", self._next),
                    add_function(host, "log", self._log),
                    add_function(host, "outside", self._outside),
                    add_function(host, "inside", self._inside),
                    add_function(host, "sleep", self._sleep),
                    add_function(host, "ask", self._ask),
                ]
            with root.add_instance(WALL_CLOCK) as clock:
                clock.add_func("now", lambda _: self._wall_clock())
                clock.add_func("resolution", lambda _: _instant(1_000_000))
        return linker

    def instance(self) -> Instance:
        """A fresh interpreter: nothing in it has run before."""
        store = Store(self._engine)
        store.set_limits(memory_size=self._memory_bytes, memories=4, instances=64, tables=64)
        store.set_wasi(WasiConfig())
        store.set_epoch_deadline(1)
        try:
            instance = self._linker.instantiate(store, self._component)
            found = instance.get_func(store, "activate")
        except WasmtimeError:
            store.close()
            raise
        if found is None:
            raise RuntimeError("the guest has no function activate")
        return Instance(store, lambda message: found(store, message))

    def activate(self, instance: Instance, message: str, calls: Calls) -> str:
        """Run one activation in an instance. Raises Trap; the instance is useless then."""
        self.calls = calls
        if self._resting:
            self._wake.set()
        self._outside(0)
        self._overran = False
        instance.store.set_epoch_deadline(1)
        self._cpu_until = time.clock_gettime(self._cpu_clock) + self._cpu_seconds
        try:
            return instance.activate(message)
        except WasmtimeError as error:
            if self._overran:
                raise Trap("timeout", self._body_name) from None
            raise _trap(error) from None
        except UnicodeError as error:
            raise Trap("crash", f"the guest's answer is not text: {error}") from None
        finally:
            self._cpu_until = self._body_until = float("inf")
            self.calls = None

    def _tick(self) -> None:
        """Stop the guest once the main thread has used its CPU time; waiting costs none. A step's
        body is stopped when its own time is over, which is no fault of the rest of the run."""
        idle = 0
        while True:
            time.sleep(TICK_SECONDS)
            idle = 0 if self.calls is not None else idle + 1
            if idle > IDLE_TICKS_MAX:
                self._rest()
                idle = 0
            if time.monotonic() > self._body_until:
                self._stop_body()
            elif time.clock_gettime(self._cpu_clock) > self._cpu_until:
                self._engine.increment_epoch()

    def _rest(self) -> None:
        """Wait for the next activation, at no cost."""
        self._wake.clear()
        self._resting = True  # said before looking, as `activate` looks after saying
        if self.calls is None:
            self._wake.wait()
        self._resting = False

    def _stop_body(self) -> None:
        self._overran = True
        self._engine.increment_epoch()

    # --- host functions ---

    def _next(self, commands: str) -> str:
        self._body_until = float("inf")  # what the worker takes to answer is not the body's time
        return self.calls.next(commands) if self.calls is not None else "[]"

    def _log(self, step: str, stream: str, text: str) -> None:
        if self.calls is not None:
            self.calls.log(step, stream, text)

    def _outside(self, now_ms: int) -> None:
        """No step's body runs from here on: time is the journal's."""
        self._body, self._now_ms = False, now_ms
        self._body_until = float("inf")

    def _inside(self, body: str, ms: int) -> None:
        """A step's body runs, which has so much of real time left."""
        self._body = True
        self._body_name = body[:BODY_NAME_MAX]
        seconds = min(ms, BODY_MS_MAX) / 1000 + BODY_GRACE_SECONDS
        self._body_until = time.monotonic() + seconds

    def _sleep(self, ms: int) -> None:
        if self.calls is None:
            return
        left = self._body_until - time.monotonic()
        self.calls.sleep(int(max(0.0, min(ms, left * 1000))))
        if time.monotonic() >= self._body_until:
            self._stop_body()

    def _ask(self, request: str) -> str:
        """The guest stands still until the worker answers; that is its body's time, not CPU's."""
        return self.calls.ask(request) if self.calls is not None else UNANSWERED

    def _wall_clock(self) -> Record:
        return _instant(time.time_ns() if self._body else self._now_ms * 1_000_000)


def _instant(nanoseconds: int) -> Record:
    record: Json = Record()  # its fields are made by setting them
    # A guest may name any u64 of milliseconds; the record's fields are u64 and u32 again.
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    record.seconds, record.nanoseconds = min(seconds, 1 << 53), rest
    made: Record = record
    return made


_EXIT = "Exited with i32 exit status"


def _trap(error: WasmtimeError) -> Trap:
    text = str(error)
    if "wasm trap: interrupt" in text:
        return Trap("cpu", "its CPU time is used up")
    if "call stack exhausted" in text:
        return Trap("recursion", "its call stack is used up")
    if _EXIT in text:
        return Trap("exit", "it ended the interpreter")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return Trap("crash", (lines[-1] if lines else "unknown trap")[:500])
