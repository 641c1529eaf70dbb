"""The Protocol of the sandbox: pipeline code runs in it and asks its host for the world.

A part of the ports, under their contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import Command, Description, Entry, Json, Outcome, SourceFiles
from ci_platform.ports.granting import Ask


@dataclass(frozen=True, slots=True)
class Activation:
    """One stretch of pipeline code to execute."""

    source: SourceFiles
    pipeline: str
    event: Mapping[str, Json]  # what the author gets as `event`
    seed: str  # of the run's randomness: the same in every activation of a run
    entries: Sequence[Entry]  # the journal so far
    strict: bool  # True: a replay that differs is a Mismatch. False: it is noted (latest)
    trusted: bool = True
    always_hibernate: bool = False  # testing: suspend at every await


class ActivationHost(Protocol):
    """What the code of one activation may ask of the world. Called from one thread."""

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        """Journal what the commands decide; answer all entries since the last that the guest knows.

        Called when no task of the guest can go on. No new entries: the guest suspends.
        """

    def log(self, step: str, stream: str, text: str) -> None:
        """Text the author printed, in pieces of any size."""

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        """What the code wants of `self.env`: {"value": …}, or {"error": {"type", "message"}} that
        it may catch. The guest stands still meanwhile, so this takes seconds at most."""


class Sandbox(Protocol):
    """Runs pipeline code with no ambient authority. Safe to call from many threads."""

    def describe(self, source: SourceFiles) -> Description:
        """Load the files and ask the module what it declares. Never raises for the author's
        mistakes: they come back as `Description.error`. Raises SandboxUnavailable."""

    def activate(self, activation: Activation, host: ActivationHost) -> Outcome:
        """Run until the code returns, fails or suspends. If `host.next` raises, the sandbox is
        dropped and that error is raised here."""

    def close(self) -> None: ...
