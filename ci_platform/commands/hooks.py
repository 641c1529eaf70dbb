"""Inbound webhooks: create, verify and keep a delivery, and finish its work later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.commands.pushes import Pushes
from ci_platform.model import Actor
from ci_platform.ports import Hook


@dataclass(frozen=True, slots=True)
class NewHook:
    hook: Hook
    secret: str  # shown once
    url: str  # where the forge sends to


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a delivery was answered with: ping, accepted, repeated or ignored, and why."""

    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Hooks:
    parts: Parts
    pushes: Pushes

    def create(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        remote_url: str | None = None,
        secret: str | None = None,
        provider: str = "github",
    ) -> NewHook:
        raise NotImplementedError

    def remove(self, actor: Actor, hook_id: str) -> None:
        raise NotImplementedError

    def receive(self, hook_id: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        """Verify a delivery and keep it. Header names in lower case. Does no other work."""
        raise NotImplementedError

    def finish_pending(self) -> int:
        """Do the work of kept deliveries that are due. Returns how many ended."""
        raise NotImplementedError
