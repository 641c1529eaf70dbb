"""Pipelines drawn at random: a plan is data, and becomes a `.ci/pipeline.py` that performs it.

A plan lists steps and ways of combining them; performer.py does what it says.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.model.performer import Part

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
from tests.model import performer

class Main(Pipeline):
    triggers = [on_manual()]
    resume = {resume!r}
    on_divergence = {on_divergence!r}
    timeout = {timeout!r}
    concurrency = {concurrency}

    async def run(self, event, step):
        return await performer.perform({main!r}, event, step, fails={fails!r})

class Child(Pipeline):
    async def run(self, event, step):
        return await performer.perform({child!r}, event, step)
"""


def source(code: dict[str, Any]) -> str:
    """The pipeline file that performs a plan."""
    group = code["group"]
    concurrency = (
        "None" if group is None else f"Concurrency('g', limit={group[1]}, on_new={group[0]!r})"
    )
    text = HEAD.format(**code, concurrency=concurrency)
    return text.replace("    concurrency = None\n", "").replace("    timeout = None\n", "")
