"""Answering an approval: one command for page, API, CLI and link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.commands.changing import change
from ci_platform.commands.inputs import check_form
from ci_platform.commands.parts import Parts, check_text
from ci_platform.engine import outside
from ci_platform.errors import InternalError, InvalidRequest, StepNotFound
from ci_platform.identity import Action, check_decider
from ci_platform.model import Actor, Approval, Decision, Json, Run, RunId, StepKey, StepKind

WAYS = ("page", "api", "cli", "link")


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
        run = self.parts.run(actor, Action.DECIDE_APPROVAL, run_id)
        if decision not in (outside.APPROVE, outside.REJECT):
            raise InvalidRequest("decision must be approve or reject", field="decision")
        assert way in WAYS, way
        check_comment(comment, self.parts.limits.comment_chars)
        approval = self.parts.store.approvals.get(run_id, approval_key(name))
        if self.parts.store.approvals.decision(run_id, approval.key, actor.id) is not None:
            return self._decided(run, approval.key, actor, first=False)
        check_decider(actor, approval, run)
        answer = outside.Answer(
            user_id=actor.id,
            user=actor.name,
            decision=decision,
            comment=comment.strip(),
            way=way,
            form=self._form(approval, decision, form or {}),
        )
        word = "approved" if decision == outside.APPROVE else "rejected"
        step = str(approval.key)
        run, first = change(
            self.parts,
            run_id,
            lambda view, now_ms: outside.decided(view, approval.key, answer, now_ms),
            note=self.parts.note(actor, f"approval {word}", run_id, step=step, way=way),
        )
        return self._decided(run, approval.key, actor, first=first)

    def _form(
        self, approval: Approval, decision: str, values: Mapping[str, Json]
    ) -> Mapping[str, Json]:
        """A rejection needs no form."""
        if decision == outside.REJECT:
            return {}
        return check_form(approval.spec.get("form") or {}, values, field="form")

    def _decided(self, run: Run, key: StepKey, actor: Actor, *, first: bool) -> Decided:
        decision = self.parts.store.approvals.decision(run.id, key, actor.id)
        if decision is None:
            raise InternalError(f"{run.id}: the answer to {key.label!r} was not kept")
        return Decided(run, self.parts.store.approvals.get(run.id, key), decision, first)


def approval_key(name: str) -> StepKey:
    """The key of a gate by what people see: `deploy`, `deploy#2`."""
    try:
        return StepKey.parse(f"{StepKind.APPROVAL}:{name}")
    except ValueError:
        raise StepNotFound() from None


def check_comment(comment: str, chars_max: int) -> None:
    """Text of several lines."""
    flat = comment.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    check_text(flat, field="comment", chars_max=chars_max, empty=True)
