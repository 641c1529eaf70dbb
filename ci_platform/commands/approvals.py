"""Answering an approval: one command for page, API, CLI and link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.model import Actor, Approval, Decision, Json, Run, RunId


@dataclass(frozen=True, slots=True)
class Decided:
    run: Run
    approval: Approval
    decision: Decision  # this person's answer that counts: the first
    first: bool  # False: they had answered before, nothing changed


@dataclass(frozen=True, slots=True)
class Approvals:
    parts: Parts

    def decide(
        self,
        actor: Actor,
        run_id: RunId,
        name: str,
        *,
        decision: str,
        comment: str = "",
        form: Mapping[str, Json] | None = None,
        way: str = "api",
    ) -> Decided:
        """Answer the gate `name` (`name#2` for the second of a name) with approve or reject.

        Raises Conflict when it is closed, Forbidden when it is not this actor's to answer.
        """
        raise NotImplementedError
