"""Does what a plan says: called by pipelines that were drawn at random, inside their sandbox.

The code keeps what it has been given (`seen`), and says so whenever it does something to the world
(trace.py), so that it can be compared to the journal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, TypeAlias

from pipelines import Event, Retry, Step
from tests.model import trace

Part: TypeAlias = tuple[Any, ...]


class Planned(Exception):
    """What a plan says fails."""


KINDS = {"gate": "approval", "start": "run"}  # how the platform calls them
Seen: TypeAlias = list[list[Any]]  # [step, what it returned], in the order the code got them


async def perform(plan: list[Part], event: Event, step: Step, *, fails: bool = False) -> Seen:
    performer = Performer(event, step)
    seen: Seen = []
    for part in plan:
        await performer.do(part, seen)
    if fails:
        raise Planned("the plan ends badly")
    return seen


class Performer:
    def __init__(self, event: Event, step: Step) -> None:
        self._run = event.run_id
        self._step = step
        self._counts: Counter[str] = Counter()

    def _key(self, kind: str, name: str) -> str:
        self._counts[f"{kind}:{name}"] += 1
        count = self._counts[f"{kind}:{name}"]
        return f"{kind}:{name}" + (f"#{count}" if count > 1 else "")

    async def do(self, part: Part, seen: Seen) -> None:
        match part:
            case ["gather", parts]:
                branches = [list(seen) for _ in parts]
                await asyncio.gather(
                    *(self.do(one, own) for one, own in zip(parts, branches, strict=True))
                )
                seen += [each for own in branches for each in own[len(seen) :]]
            case ["catch", inner]:
                try:
                    await self.do(inner, seen)
                except Exception as error:
                    seen.append(["caught", type(error).__name__])
            case ["timeout", seconds, parts]:
                try:
                    async with asyncio.timeout(seconds):
                        for one in parts:
                            await self.do(one, seen)
                except TimeoutError:
                    seen.append(["late", None])
            case _:
                await self._leaf(part, seen)

    async def _leaf(self, part: Part, seen: Seen) -> None:
        step, run, known = self._step, self._run, list(seen)
        kind, name = str(part[0]), str(part[1])
        rest = part[2:]
        key = self._key(KINDS.get(kind, kind), name)
        value: Any = None
        match kind:
            case "do":
                fails, retries, undo = rest

                def undone(ctx: Any, output: Any) -> Any:
                    return trace.executed(run, f"do:$rollback:{key}", ctx.attempt, output, None)

                value = await step.do(
                    name,
                    lambda ctx: trace.executed(run, key, ctx.attempt, known, fails),
                    retries=Retry(limit=retries, delay=trace.DELAY, backoff="constant"),
                    rollback=undone if undo else None,
                )
            case "sh":
                fails, retries, undo = rest
                result = await step.sh(
                    name,
                    trace.script(key, known, fails),
                    retries=Retry(limit=retries, delay=trace.DELAY, backoff="constant"),
                    rollback=trace.script(key, [], 0) if undo else None,
                )
                value = result.outputs
            case "sleep":
                await step.sleep(name, rest[0])
            case "wait":
                value = (await step.wait_for_event(name, type=rest[0], timeout=rest[1])).payload
            case "gate":
                told = await step.approval(name, timeout=rest[0], allow_self=True)
                value = told.decisions[0].user
            case _:
                value = (await step.start(name, "Child", wait=rest[0])).id
        seen.append([key, value])
