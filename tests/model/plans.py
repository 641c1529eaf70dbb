"""Pipelines drawn at random: a plan is data, and becomes a `.ci/pipeline.py` that performs it.

A plan lists steps and ways of combining them. The code keeps what it has been given (`seen`), and
says so whenever it does something to the world, so that the world can compare it to the journal.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, TypeAlias

from hypothesis import strategies as st

from pipelines import Event, Retry, Step
from tests.model import trace

Part: TypeAlias = tuple[Any, ...]
TYPES = ["go", "stop"]
GATES = ["ship", "sign"]
MANY = 6  # failures that outlast every retry

NAMES = st.sampled_from(["a", "b"])
FAILS = st.sampled_from([0, 0, 0, 1, MANY])
RETRIES = st.integers(0, 2)
DO = st.tuples(st.just("do"), NAMES, FAILS, RETRIES, st.booleans())
SH = st.tuples(st.just("sh"), NAMES, FAILS, RETRIES, st.booleans())
SLEEP = st.tuples(st.just("sleep"), NAMES, st.sampled_from([1, 60, 3600]))
WAIT = st.tuples(st.just("wait"), NAMES, st.sampled_from(TYPES), st.sampled_from([20, 1_000_000]))
GATE = st.tuples(st.just("gate"), st.sampled_from(GATES), st.sampled_from([40, 1_000_000]))
START = st.tuples(st.just("start"), NAMES, st.booleans())
STEP = st.one_of(DO, SH, SLEEP, WAIT, GATE)
LEAF = st.one_of(DO, DO, SH, SLEEP, WAIT, GATE, START)
TREE: st.SearchStrategy[Part] = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.tuples(st.just("gather"), st.lists(inner, min_size=2, max_size=3)),
        st.tuples(st.just("catch"), inner),
        st.tuples(st.just("timeout"), st.sampled_from([5, 100]), st.lists(inner, max_size=2)),
    ),
    max_leaves=4,
)
POLICY = {
    "resume": st.sampled_from(["pinned", "pinned", "latest"]),
    "on_divergence": st.sampled_from(["accept", "accept", "hold", "fail"]),
    "timeout": st.sampled_from([None, None, "30 minutes"]),
    "group": st.sampled_from(
        [None, None, ("queue", 1), ("queue", 2), ("cancel_running", 1), ("cancel_queued", 1)]
    ),
}
CODE = st.fixed_dictionaries(
    {
        "main": st.lists(TREE, min_size=1, max_size=4),
        "child": st.lists(STEP, min_size=1, max_size=2),
        "fails": st.sampled_from([False, False, True]),
        **POLICY,
    }
)

HEAD = """\
import asyncio
from pipelines import *
from tests.model import plans

class Main(Pipeline):
    triggers = [on_manual()]
    resume = {resume!r}
    on_divergence = {on_divergence!r}
    timeout = {timeout!r}
    concurrency = {concurrency}

    async def run(self, event, step):
        return await plans.perform({main!r}, event, step, fails={fails!r})

class Child(Pipeline):
    async def run(self, event, step):
        return await plans.perform({child!r}, event, step)
"""


def source(code: dict[str, Any]) -> str:
    """The pipeline file that performs a plan."""
    group = code["group"]
    concurrency = (
        "None" if group is None else f"Concurrency('g', limit={group[1]}, on_new={group[0]!r})"
    )
    text = HEAD.format(**code, concurrency=concurrency)
    return text.replace("    concurrency = None\n", "").replace("    timeout = None\n", "")


# --- what the files do: called by their code, inside the sandbox ---------------------------------


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
                    retries=Retry(limit=retries, delay="5 s", backoff="constant"),
                    rollback=undone if undo else None,
                )
            case "sh":
                fails, retries, undo = rest
                result = await step.sh(
                    name,
                    json.dumps({"fails": fails, "seen": known}),
                    retries=Retry(limit=retries, delay="5 s", backoff="constant"),
                    rollback=json.dumps({"fails": 0, "seen": []}) if undo else None,
                )
                value = result.outputs
            case "sleep":
                await step.sleep(name, rest[0])
            case "wait":
                value = (await step.wait_for_event(name, type=rest[0], timeout=rest[1])).payload
            case "gate":
                value = (await step.approval(name, timeout=rest[0])).decisions[0].user
            case _:
                value = (await step.start(name, "Child", wait=rest[0])).id
        seen.append([key, value])
