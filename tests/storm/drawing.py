"""Draws the pipelines of a storm: plans as those of tests/model, in terms of seconds, whose end can
be told beforehand. No race decides anything: what times out is never answered, and all else is.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.model import plans
from tests.model.performer import Part

HERE = Path(__file__).parent
INSIDE = HERE / "inside.py"
PERFORMER = HERE.parent / "model/performer.py"
ALWAYS = 99  # times a step fails: however often it is tried
LOSSES = 9  # retries that are left for attempts which the storm takes
FOREVER = 1_000_000  # seconds
SOON = 1  # second, until what nobody answers times out
LEAVES_MAX = 9  # steps of a plan
CHILDREN_MAX = 2
CHANCE_OF_FAILING = 0.12  # of a leaf


class Drawer:
    """Draws one plan. Every step has a name of its own, which says what becomes of it."""

    def __init__(self, lot: random.Random, *, children: int) -> None:
        self._lot = lot
        self._children = children
        self._leaves = 0

    def plan(self, parts: int) -> list[Part]:
        return [self._tree(2) for _ in range(parts)]

    def _tree(self, depth: int) -> Part:
        lot = self._lot
        kind = lot.choice(["leaf", "leaf", "leaf", "gather", "catch", "timeout", "late"])
        if depth == 0 or kind == "leaf" or self._leaves > LEAVES_MAX:
            return self._leaf()
        if kind == "gather":
            return ("gather", [self._tree(depth - 1) for _ in range(lot.randint(2, 3))])
        if kind == "catch":
            return ("catch", self._tree(depth - 1))
        if kind == "timeout":
            return ("timeout", FOREVER, [self._tree(depth - 1) for _ in range(2)])
        return ("timeout", SOON, [("wait", self._name("unheard"), "never", FOREVER)])

    def _name(self, word: str) -> str:
        self._leaves += 1
        return f"{word}{self._leaves}"

    def _leaf(self) -> Part:
        lot = self._lot
        kind = lot.choice(["do", "do", "do", "sh", "sleep", "wait", "gate", "start"])
        fails = lot.random() < CHANCE_OF_FAILING
        if kind == "start" and self._children:
            self._children -= 1
            return ("start", self._name("child"), lot.random() < 0.7)
        if kind == "sleep":
            return ("sleep", self._name("nap"), round(lot.uniform(0.05, 2), 2))
        if kind == "wait":
            name = self._name("unheard" if fails else "heard")
            return ("wait", name, "never" if fails else name, SOON if fails else FOREVER)
        if kind == "gate":
            word = lot.choice(["no", "late"]) if fails else "yes"
            return ("gate", self._name(word), SOON if word == "late" else FOREVER)
        times = ALWAYS if fails else lot.choice([0, 0, 1])
        undo = lot.random() < 0.4
        if kind == "sh":
            return ("sh", self._name("sh"), times, 1 if fails else LOSSES, undo)
        return ("do", self._name("do"), times, LOSSES, undo)


def draw(lot: random.Random) -> dict[str, Any]:
    """The code of one repository's state: `Main`, and the `Child` that it may start."""
    return {
        "main": Drawer(lot, children=CHILDREN_MAX).plan(lot.randint(1, 4)),
        "child": Drawer(lot, children=0).plan(lot.randint(1, 2)),
        "fails": lot.random() < 0.1,
        "resume": "pinned",
        "on_divergence": "accept",
        "timeout": None,
        "group": None,
    }


def files(code: dict[str, Any]) -> dict[str, str]:
    """What is committed."""
    return {
        ".ci/pipeline.py": plans.source(code),
        ".ci/tests/model/performer.py": PERFORMER.read_text(encoding="utf-8"),
        ".ci/tests/model/trace.py": INSIDE.read_text(encoding="utf-8"),
    }
