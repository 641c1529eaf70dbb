"""How a drawn plan must end, and what its code must have seen, given the results in the journal.

Written against what plans mean, with no look at the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.model.performer import KINDS, Part, Seen
from tests.model.reference import Broken, holds
from tests.storm.drawing import ALWAYS, SOON
from tests.storm.inside import digest

CHILD_FAILED = "StepFailed"
PLANNED = "Planned"


class Fails(Exception):
    """It ends with one of these errors: of several at once, the quickest wins."""

    def __init__(self, types: set[str]) -> None:
        self.types = types


class Foretold:
    """One run of a plan. `results`: what the journal says each step returned."""

    def __init__(self, code: Mapping[str, Any], pipeline: str, results: Mapping[str, Any]) -> None:
        self._child = code["child"]
        self._plan: list[Part] = code[pipeline.lower()]
        self._fails = bool(code["fails"]) and pipeline == "Main"
        self._results = results

    def end(self) -> tuple[str, Seen | set[str]]:
        """`passed` and the output, or `failed` and the types of error that may be told."""
        seen: Seen = []
        try:
            for part in self._plan:
                self._do(part, seen)
        except Fails as fails:
            return "failed", fails.types
        return ("failed", {PLANNED}) if self._fails else ("passed", seen)

    def _do(self, part: Part, seen: Seen) -> None:
        types = self._types(part)
        match part:
            case ["gather", parts]:
                if types:
                    raise Fails(types)
                branches = [list(seen) for _ in parts]
                for one, own in zip(parts, branches, strict=True):
                    self._do(one, own)
                seen += [each for own in branches for each in own[len(seen) :]]
            case ["catch", inner]:
                try:
                    self._do(inner, seen)
                except Fails as fails:
                    seen.append(["caught", fails.types])
            case ["timeout", seconds, _] if seconds == SOON:
                seen.append(["late", None])
            case ["timeout", _, parts]:
                for one in parts:
                    self._do(one, seen)
            case _ if types:
                raise Fails(types)
            case _:
                self._leaf(part, seen)

    def _types(self, part: Part) -> set[str]:
        """The errors that may come out of it."""
        match part:
            case ["gather", parts]:
                return set().union(*map(self._types, parts))
            case ["catch", _] | ["timeout", 1, _]:
                return set()
            case ["timeout", _, parts]:
                return next((types for types in map(self._types, parts) if types), set())
            case ["do", _, fails, *_]:
                return {"NonRetryable"} if fails == ALWAYS else set()
            case ["sh", _, fails, *_]:
                return {"CommandFailed"} if fails == ALWAYS else set()
            case ["wait" | "gate", name, *_]:
                word = name.rstrip("0123456789")
                return {
                    "no": {"Rejected"},
                    "late": {"WaitTimeout"},
                    "unheard": {"WaitTimeout"},
                }.get(word, set())
            case ["start", _, True]:
                ends = any(map(self._types, self._child))
                return {CHILD_FAILED} if ends else set()
        return set()

    def _leaf(self, part: Part, seen: Seen) -> None:
        kind = str(part[0])
        key = f"{KINDS.get(kind, kind)}:{part[1]}"
        holds(key in self._results, f"{key} has passed")
        told = self._results[key]
        match kind:
            case "do":
                value = told
            case "sh":
                value = told["outputs"]
            case "wait":
                value = told["payload"]
                holds(value == {"to": part[1]}, f"{key} got what was sent to it")
            case "gate":
                value = told["decisions"][0]["user"]
            case "start":
                value = told["id"]
            case _:
                value = None
        if kind in ("do", "sh"):
            holds(value["seen"] == digest(seen), f"{key} was given what the journal holds")
        seen.append([key, value])


def agree(output: Any, seen: Seen) -> None:
    """Whether the output of a run is what its code must have seen."""
    holds(isinstance(output, list) and len(output) == len(seen), f"{output} is not {seen}")
    for one, other in zip(output, seen, strict=True):
        caught = one[0] == other[0] == "caught" and one[1] in other[1]
        if not caught and one != other:
            raise Broken(f"the code saw {one}, and the journal holds {other}")
