"""What a push starts: one command for git, the API's commits and webhooks."""

from __future__ import annotations

from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.model import Push


@dataclass(frozen=True, slots=True)
class Pushes:
    parts: Parts

    def received(self, push: Push) -> list[str]:
        """Start what the push starts; returns lines for the pusher. Safe to tell twice."""
        raise NotImplementedError

    def dispatch_pending(self) -> int:
        """Finish pushes of the outbox that nobody finished. Returns how many."""
        raise NotImplementedError
