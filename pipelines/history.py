"""The journal as one activation knows it: which entry comes next, and what is over already.

Strict: entries come in journal order, whatever the code asked for. Not strict (newer code than the
one that wrote the journal): entries of steps that the code has not asked for yet stay back until it
does. Used by replay.py only.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping, Sequence
from typing import TypeAlias

from pipelines.wire import Json

Key: TypeAlias = tuple[str, str, int]
Entry: TypeAlias = Mapping[str, Json]

ROLLBACK = "rollback_started"
_ENDS = frozenset({"step_passed", "step_failed", "step_cancelled"})


def key_of(entry: Entry) -> Key | None:
    """The step an entry moves. Remarks about a step, such as `diverged`, move none."""
    key = entry["key"]
    if key is None or entry["kind"] in ("diverged", "approval_decided"):
        return None
    return (key[0], key[1], key[2])


class History:
    def __init__(self, entries: Sequence[Entry], *, strict: bool) -> None:
        self.strict = strict
        self.over: set[Key] = set()  # steps that have ended
        self.failed: set[tuple[Key, int]] = set()  # attempts that have failed
        self.unmatched: set[Key] = set()  # started by earlier code, not asked for by this one yet
        self.noted: set[tuple[Key, str]] = set()  # divergences that the journal has already
        self._entries: list[Entry] = []
        self._at = 0
        self._held: dict[Key, list[int]] = {}  # not strict: entries that stay back, by step
        self._due: list[int] = []  # not strict: held entries whose step was asked for meanwhile
        self.learn(entries, asked=())
        self.rolls_back = any(each["kind"] == ROLLBACK for each in entries)  # and is not there yet
        self.frontier = _frontier(entries)  # up to here, earlier activations have come

    def learn(self, entries: Sequence[Entry], *, asked: Container[Key]) -> None:
        """Add what the host answered. `asked`: the steps that this code has asked for."""
        for entry in entries:
            self._entries.append(entry)
            kind, key = entry["kind"], key_of(entry)
            if kind == "diverged" and entry["key"] is not None:
                self.noted.add((tuple(entry["key"]), entry["data"].get("change")))
            if key is None:
                continue
            if kind == "step_started" and key not in asked:
                self.unmatched.add(key)
            elif kind in _ENDS:
                self.over.add(key)
            elif kind == "attempt_failed":
                self.failed.add((key, entry["attempt"] or 1))

    def peek(self, asked: Container[Key]) -> Entry | None:
        """The next entry to deliver; None when there is none for this code."""
        if self._due:
            return self._entries[self._due[0]]
        while self._at < len(self._entries):
            entry = self._entries[self._at]
            key = key_of(entry)
            if self.strict or key is None or key in asked:
                return entry
            self._held.setdefault(key, []).append(self._at)
            self._at += 1
        return None

    def take(self) -> None:
        """The entry that `peek` showed is delivered."""
        if self._due:
            heapq.heappop(self._due)
        else:
            self._at += 1

    def ask(self, key: Key) -> None:
        """The code asked for a step: its entries stay back no longer."""
        for index in self._held.pop(key, ()):
            heapq.heappush(self._due, index)

    @property
    def pending(self) -> bool:
        """Whether something stays back for steps that the code may yet ask for."""
        return not self.strict and bool(self.unmatched or self._held)

    def rest(self) -> Sequence[Entry]:
        """What strict delivery has not come to."""
        return self._entries[self._at :]

    def attempt_is_over(self, key: Key, attempt: int) -> bool:
        return key in self.over or (key, attempt) in self.failed

    def starts_body(self, entries: Sequence[Entry]) -> bool:
        """Whether a body has to run because of these entries."""
        for entry in entries:
            key = key_of(entry)
            if (
                key is not None
                and key[0] == "do"
                and entry["kind"] in ("step_started", "attempt_started")
                and not self.attempt_is_over(key, entry["attempt"] or 1)
            ):
                return True
        return False


def _frontier(entries: Sequence[Entry]) -> int:
    """The last entry that an earlier activation surely came to: it asked for a step there, went on
    early, or went to sleep. What comes behind is delivered for the first time, so its prints are
    new."""
    for entry in reversed(entries):
        if (
            entry["kind"] in ("step_started", "run_suspended", ROLLBACK)
            or "early_ms" in entry["data"]
        ):
            return int(entry["seq"])
    return 0
