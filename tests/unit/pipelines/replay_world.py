"""A journal to write by hand, and a host that answers from it, for tests of the replay."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pipelines.history import Entry
from pipelines.replay import Answer, Replay
from pipelines.step import Step

Code = Callable[[Step], Awaitable[Any]]
START_MS = 1_900_000_000_000


_PAST: list[Replay] = []  # see Replay: dropping one would run `finally` blocks


class Journal:
    """Entries, one second apart, in the wire's form. Methods take labels such as `do:build#2`."""

    def __init__(self, *, claimed: bool = True) -> None:
        self.entries: list[Entry] = []
        self.add("run_created")
        if claimed:
            self.add("run_claimed")

    def add(
        self, kind: str, step: str | None = None, attempt: int | None = None, **data: Any
    ) -> Journal:
        self.entries.append(
            {
                "seq": len(self.entries) + 1,
                "kind": kind,
                "at_ms": START_MS + 1000 * len(self.entries),
                "data": data,
                "key": None if step is None else key(step),
                "attempt": attempt,
            }
        )
        return self

    def started(self, step: str, **config: Any) -> Journal:
        return self.add("step_started", step, 1, config=config)

    def passed(self, step: str, value: Any = None, attempt: int = 1) -> Journal:
        return self.add("step_passed", step, attempt, value=value)

    def failed(self, step: str, type: str = "ValueError", message: str = "no", **data: Any) -> Any:
        error = {"type": type, "message": message, "traceback": "", "data": data}
        return self.add("step_failed", step, 1, error=error)


def key(label: str) -> list[Any]:
    kind, _, rest = label.partition(":")
    name, _, occurrence = rest.partition("#")
    return [kind, name, int(occurrence or 1)]


def said(command: dict[str, Any]) -> str:
    """A command in a few words: `start do:a`, `finish do:a = 1`, `finish do:a ! ValueError`."""
    kind, name, occurrence = command["key"]
    label = f"{kind}:{name}" + (f"#{occurrence}" if occurrence > 1 else "")
    words = f"{command['op']} {label}"
    if command["op"] == "finish":
        ending = f"! {command['error']['type']}" if "error" in command else f"= {command['value']}"
        return f"{words} {ending}"
    return f"{words} {command['change']}" if command["op"] == "diverge" else words


class World:
    """Host and clock of one replay. `answers` are used up one for each `next`; then: suspend.

    With `obliging`, every start and every end is journaled as it was asked for."""

    def __init__(
        self,
        journal: Journal | None = None,
        *answers: Callable[[Journal], object],
        obliging: bool = False,
        **options: Any,
    ) -> None:
        self.journal = journal or Journal()
        self.said: list[list[str]] = []  # the commands of each `next`
        self.commands: list[dict[str, Any]] = []
        self.printed: list[tuple[str, str, str]] = []
        self.senses: list[tuple[bool, int]] = []
        self.allowed: list[tuple[str, float]] = []
        self.slept = 0.0
        self._answers = list(answers)
        self._obliging = obliging
        self._options = options

    def run(self, code: Code) -> Answer:
        self.replay = Replay(
            host=self, clock=self, entries=list(self.journal.entries), **self._options
        )
        _PAST.append(self.replay)
        step = Step(self.replay)

        async def main() -> Any:
            return await code(step)

        answer = self.replay.run(main)
        if "commands" in answer:  # heard like any others; kept off the answer, to compare it
            self.next(json.dumps(answer.pop("commands")))
        return answer

    def next(self, commands: str) -> str:
        found = json.loads(commands)
        self.said.append([said(command) for command in found])
        self.commands += found
        before = len(self.journal.entries)
        if self._answers:
            self._answers.pop(0)(self.journal)
        elif self._obliging:
            self._oblige(found)
        return json.dumps(self.journal.entries[before:])

    def _oblige(self, commands: Sequence[dict[str, Any]]) -> None:
        for command in commands:
            kind, name, occurrence = command["key"]
            step = f"{kind}:{name}#{occurrence}"
            if command["op"] == "start":
                self.journal.started(step)
            elif command["op"] == "abandon":
                self.journal.add("step_cancelled", step, reason="abandoned")
            elif "error" in command:
                attempt = command["attempt"]
                self.journal.add("step_failed", step, attempt, error=command["error"])
            else:
                told = {name: command[name] for name in ("value", "early_ms") if name in command}
                self.journal.add("step_passed", step, command["attempt"], **told)

    def log(self, step: str, stream: str, text: str) -> None:
        self.printed.append((step, stream, text))

    def outside(self, now_ms: int) -> None:
        self.senses.append((False, now_ms))

    def inside(self, body: str, seconds: float) -> None:
        self.senses.append((True, 0))
        self.allowed.append((body, round(seconds, 3)))

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
