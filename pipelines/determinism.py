"""What code senses of time and chance: the journal's outside step bodies, the real ones inside.

`install` patches the interpreter of the sandbox once, while the guest is built; never an author's
own. C code that reads the clock (datetime.now) asks the host, which guest.py keeps told. This makes
replays equal; it is no secret keeping: code that goes around it only breaks its own run.

One thing is not the journal's: the order of a set of texts follows a seed that is drawn when the
guest is built. It is equal in all activations of one build, and may differ in another's, so code
that starts steps in the order of a set should sort it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator

from pipelines.wire import Json

_real_urandom = os.urandom
_real_time = time.time
_real_monotonic = time.monotonic
_real_sleep = time.sleep
_real_as_completed = asyncio.as_completed


class Senses:
    """The present mode, the logical time and the run's own randomness."""

    def __init__(self) -> None:
        self.body = False
        self.now_ms = 0
        self.sleep: Callable[[float], None] = _real_sleep
        self.logical = random.Random(0)  # what the functions of `random` draw from
        self.entropy = random.Random(0)  # os.urandom, uuid4, secrets
        self.real = random.SystemRandom()

    def seed(self, seed: str) -> None:
        """Begin an activation: the same seed gives the same draws."""
        self.logical.seed(seed)
        self.logical.gauss_next = None  # type: ignore[attr-defined]
        self.entropy.seed(f"{seed}/entropy")
        self.body = False
        self.now_ms = 0


class _SensedRandom(random.Random):
    """The generator behind random.random() and its like."""

    def __init__(self, senses: Senses) -> None:
        self._senses = senses
        super().__init__(0)

    @property
    def _source(self) -> random.Random:
        return self._senses.real if self._senses.body else self._senses.logical

    def random(self) -> float:
        return self._source.random()

    def getrandbits(self, k: int, /) -> int:
        return self._source.getrandbits(k)

    def seed(self, a: Json = None, version: int = 2) -> None:
        self._source.seed(a, version)

    def getstate(self) -> tuple[Json, ...]:
        return self._senses.logical.getstate()

    def setstate(self, state: tuple[Json, ...]) -> None:
        self._senses.logical.setstate(state)

    @property
    def gauss_next(self) -> float | None:
        return self._source.gauss_next  # type: ignore[attr-defined, no-any-return]

    @gauss_next.setter
    def gauss_next(self, value: float | None) -> None:
        self._source.gauss_next = value  # type: ignore[attr-defined]


def install() -> Senses:
    """Patch this interpreter's time, random, os.urandom, secrets and uuid. Not undone."""
    senses = Senses()
    _install_randomness(senses)
    _install_time(senses)
    asyncio.as_completed = _as_completed
    return senses


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """For an interpreter that is not the sandbox's: asyncio starts code in the order of the code
    meanwhile."""
    asyncio.as_completed = _as_completed
    try:
        yield
    finally:
        asyncio.as_completed = _real_as_completed


def _as_completed(fs: Iterable[Json], *, timeout: float | None = None) -> Json:
    """asyncio's own begins coroutines in the order of a set of them, which is that of their
    addresses. Tasks have an order of their own, see loop.py."""
    if not asyncio.iscoroutine(fs) and not asyncio.isfuture(fs):
        fs = [asyncio.ensure_future(each) for each in dict.fromkeys(fs)]
    return _real_as_completed(fs, timeout=timeout)


def _install_randomness(senses: Senses) -> None:
    def urandom(size: int, /) -> bytes:
        return _real_urandom(size) if senses.body else senses.entropy.randbytes(size)

    os.urandom = urandom
    random._urandom = urandom  # type: ignore[attr-defined]  # SystemRandom, and so secrets
    own_seed = random.Random.seed

    def seed(self: random.Random, a: Json = None, version: int = 2) -> None:
        own_seed(self, int.from_bytes(urandom(32), "big") if a is None else a, version)

    random.Random.seed = seed  # type: ignore[method-assign]
    shared = _SensedRandom(senses)
    for name in random.__all__:
        method = getattr(shared, name, None)
        if name[0].islower() and callable(method):
            setattr(random, name, method)
    random._inst = shared


def _install_time(senses: Senses) -> None:
    def seconds(real: Callable[[], float]) -> Callable[[], float]:
        return lambda: real() if senses.body else senses.now_ms / 1000

    def nanoseconds(real: Callable[[], int]) -> Callable[[], int]:
        return lambda: real() if senses.body else senses.now_ms * 1_000_000

    def sleep(duration: Json, /) -> None:
        if not senses.body:
            raise RuntimeError(
                "time.sleep would hold the sandbox: outside a step's body, await step.sleep(name, "
                "duration) or asyncio.sleep(seconds)"
            )
        senses.sleep(duration)

    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
        if hasattr(time, name):
            setattr(time, name, seconds(getattr(time, name)))
            setattr(time, f"{name}_ns", nanoseconds(getattr(time, f"{name}_ns")))
    time.sleep = sleep


def real_monotonic() -> float:
    """Seconds on the real clock, whatever the mode."""
    return _real_monotonic()


def real_sleep(duration: float) -> None:
    """Wait for real, where there is no host to do it."""
    _real_sleep(duration)
