"""Which pipelines a push starts: globs, path filters and skip tokens. Pure.

Patterns come from untrusted repositories, so matching never backtracks and its work is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ci_platform.model import PipelineDescription, Trigger

BRANCH = "refs/heads/"
TAG = "refs/tags/"
PATTERN_MAX = 256  # characters; longer ones match nothing
WORK_MAX = 20_000_000  # comparisons per trigger; beyond it a path filter counts as matching

_SKIP = re.compile(r"\[\s*(skip[ -]*(ci|actions)|(ci|actions)[ -]*skip|no ci)\s*\]", re.IGNORECASE)
_SKIP_TRAILER = re.compile(r"skip-checks:\s*true\s*", re.IGNORECASE)
_MESSAGE_CHARS = 20_000  # of a commit message are looked at, from each end
SKIP_OPTION = "ci.skip"


def skip_reason(message: str, options: Sequence[str]) -> str | None:
    """Why a push to a branch asks to start nothing; None if it does not. Tags never skip."""
    if SKIP_OPTION in options:
        return f"the push option {SKIP_OPTION}"
    token = _SKIP.search(message[:_MESSAGE_CHARS])
    if token is not None:
        return f"{token.group()} in the commit message"
    lines = message[-_MESSAGE_CHARS:].rstrip().splitlines()
    if len(lines) > 1 and _SKIP_TRAILER.fullmatch(lines[-1]):
        return f"the trailer {lines[-1].strip()}"
    return None


def matching_trigger(
    pipeline: PipelineDescription, ref: str, changed: Callable[[], Sequence[str]]
) -> Trigger | None:
    """The first trigger of a pipeline that a moved ref fires.

    `changed` answers the changed paths; it is asked only when a trigger filters by them.
    """
    for trigger in pipeline.triggers:
        if _ref_matches(trigger, ref) and (
            not trigger.paths or _any_path(trigger.paths, changed())
        ):
            return trigger
    return None


def _ref_matches(trigger: Trigger, ref: str) -> bool:
    if ref.startswith(BRANCH):
        # A push trigger that names tags only is not about branches.
        if trigger.kind != "push" or (trigger.tags and not trigger.branches):
            return False
        return matches(trigger.branches, ref.removeprefix(BRANCH))
    about_tags = trigger.kind == "tag" or (trigger.kind == "push" and bool(trigger.tags))
    return about_tags and ref.startswith(TAG) and matches(trigger.tags, ref.removeprefix(TAG))


def matches(patterns: Sequence[str], text: str) -> bool:
    """Whether the last pattern that fits `text` is a positive one; no patterns fit everything.

    `!` negates. A list that begins with a negation begins from everything.
    """
    if not patterns:
        return True
    found = patterns[0].startswith("!")
    for pattern in patterns:
        negated = pattern.startswith("!")
        if found == negated and glob(pattern.removeprefix("!")).fits(text):
            found = not negated
    return found


def _any_path(patterns: Sequence[str], paths: Iterable[str]) -> bool:
    work = 0
    for path in paths:
        work += sum(min(len(pattern), PATTERN_MAX) for pattern in patterns) * (len(path) + 1)
        if work > WORK_MAX or matches(patterns, path):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern as a small automaton: state i means that i tokens are behind us."""

    tokens: tuple[str, ...]  # a character, or one of ? * **
    closure: tuple[frozenset[int], ...]  # states reached from i without reading a character

    def fits(self, text: str) -> bool:
        states = self.closure[0]
        for char in text:
            following: set[int] = set()
            for state in states:
                if state == len(self.tokens):
                    continue
                token = self.tokens[state]
                if token == "**" or (token == "*" and char != "/"):
                    following |= self.closure[state]
                elif token == char or (token == "?" and char != "/"):
                    following |= self.closure[state + 1]
            if not following:
                return False
            states = frozenset(following)
        return len(self.tokens) in states


@lru_cache(maxsize=1024)
def glob(pattern: str) -> Glob:
    """Read a pattern: `*` and `?` stay within a path segment, `**` crosses them.

    `**/` at the start of a segment also stands for no directory at all.
    """
    if len(pattern) > PATTERN_MAX:
        return Glob(("?",), (frozenset(), frozenset()))
    tokens = re.findall(r"\*\*+|.", pattern, re.DOTALL)
    tokens = ["**" if token.startswith("**") else token for token in tokens]
    closure: list[frozenset[int]] = [frozenset()] * (len(tokens) + 1)
    for state in range(len(tokens), -1, -1):
        reached = {state}
        if state < len(tokens) and tokens[state] in ("*", "**"):
            reached |= closure[state + 1]
            directories = tokens[state] == "**" and tokens[state + 1 : state + 2] == ["/"]
            if directories and (state == 0 or tokens[state - 1] == "/"):
                reached |= closure[state + 2]
        closure[state] = frozenset(reached)
    return Glob(tuple(tokens), tuple(closure))
