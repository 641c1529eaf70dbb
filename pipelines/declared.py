"""The decorator form of `step.do`: functions whose parameters name the steps they need.

Each declared step runs once as a dependency, however many need it, so they form a graph. Calling
one directly runs it again, as its next occurrence. Made by step.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Generic, TypeVar

from pipelines.values import StepContext
from pipelines.wire import Json

T = TypeVar("T")
Body = Callable[[StepContext], Json]


class DeclaredStep(Generic[T]):
    """A function that is a step: `await build()` runs it, with what it needs."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Json],
        call: Callable[[Body], Coroutine[Json, Json, Json]],
        earlier: Mapping[str, DeclaredStep[Json]],
        *,
        concurrent: bool,
    ) -> None:
        self.name = name
        self._function = function
        self._call = call
        self._concurrent = concurrent
        self._first: asyncio.Task[Json] | None = None  # what dependents share
        self._needs: dict[str, DeclaredStep[Json]] = {}
        self._takes_ctx = False
        for parameter in inspect.signature(function).parameters.values():
            self._read(parameter, earlier)

    def _read(
        self, parameter: inspect.Parameter, earlier: Mapping[str, DeclaredStep[Json]]
    ) -> None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"step {self.name!r} must not take *{parameter.name}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"step {self.name!r}: {parameter.name} must not be positional-only")
        if parameter.name == "ctx":
            self._takes_ctx = True
        elif parameter.name in earlier:
            self._needs[parameter.name] = earlier[parameter.name]
        elif parameter.default is parameter.empty:
            known = ", ".join(sorted(earlier)) or "none"
            raise TypeError(
                f"step {self.name!r}: the parameter {parameter.name!r} is neither ctx nor an "
                f"earlier declared step (known: {known})"
            )

    def __call__(self) -> Coroutine[Json, Json, T]:
        """Run the step, after what it needs."""
        return self._share(self._perform())

    async def _share(self, performing: Coroutine[Json, Json, T]) -> T:
        task = asyncio.ensure_future(performing)
        if self._first is None:
            self._first = task
        return await task

    async def _perform(self) -> T:
        values = await self._gather() if self._concurrent else await self._one_by_one()

        def body(ctx: StepContext) -> Json:
            given = {**values, "ctx": ctx} if self._takes_ctx else values
            return self._function(**given)

        result: T = await self._call(body)
        return result

    async def _one_by_one(self) -> dict[str, Json]:
        return {name: await need._result() for name, need in self._needs.items()}

    async def _gather(self) -> dict[str, Json]:
        values = await asyncio.gather(*(need._result() for need in self._needs.values()))
        return dict(zip(self._needs, values, strict=True))

    async def _result(self) -> T:
        """What dependents get: the first call's result, begun now if nobody has."""
        if self._first is None:
            self._first = asyncio.ensure_future(self._perform())
        result: T = await asyncio.shield(self._first)
        return result
