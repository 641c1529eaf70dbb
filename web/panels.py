"""The approval panel: what a gate says, to whom, and what it says afterwards.

Shared by the home page, a run's page and a step's page, and so by the live run panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.errors import Forbidden
from ci_platform.identity import check_decider
from ci_platform.model import Actor, Approval, Decision, Origin, Repository, Run, RunState
from ci_platform.queries import ApprovalView
from web.inputs import Input, inputs_of


@dataclass(frozen=True, slots=True)
class ApprovalPanel:
    approval: Approval
    run: Run
    repository: Repository
    title: str
    may_answer: bool
    why_not: str
    who: str
    required: int
    given: int
    mine: Decision | None  # the reader's own answer: the first one counts
    form: Sequence[Input]
    environment: str
    commit: str  # that the answer is about
    origin: Origin | None  # the run in which it was asked and answered, if not this one
    stands_still: bool  # its run is paused, and so is its time

    @property
    def key(self) -> str:
        return self.approval.key.label

    @property
    def name(self) -> str:
        return self.approval.key.label

    @property
    def version(self) -> str:
        """Changes when the panel must be drawn anew; a reader's half-written comment stays."""
        state = self.approval.outcome or ("paused" if self.stands_still else "open")
        return f"{state}-{len(self.approval.decisions)}-{self.approval.expires_ms}"


def approval_panel(view: ApprovalView, actor: Actor, title: str) -> ApprovalPanel:
    approval = view.approval
    spec = approval.spec
    mine = next((one for one in approval.decisions if one.user_id == actor.id), None)
    open_to_reader = approval.outcome is None and view.may_answer and mine is None
    return ApprovalPanel(
        approval=approval,
        run=view.run,
        repository=view.repository,
        title=title,
        may_answer=open_to_reader,
        why_not="" if open_to_reader or mine else _why_not(view, actor),
        who=_who(approval),
        required=int(spec.get("required") or 1),
        given=sum(1 for one in approval.decisions if one.decision == "approve"),
        mine=mine,
        form=inputs_of(spec.get("form") or {}),
        environment=str(spec.get("environment") or ""),
        commit=view.run.commit if view.step is None else view.step.commit,
        origin=None if view.step is None else view.step.origin,
        stands_still=view.run.state is RunState.PAUSED,
    )


def _why_not(view: ApprovalView, actor: Actor) -> str:
    try:
        check_decider(actor, view.approval, view.run)
    except Forbidden as refusal:
        return refusal.detail
    return "your rights here do not reach that far"


def _who(approval: Approval) -> str:
    """Say who may answer, in words."""
    words = []
    for entry in approval.spec.get("approvers") or ():
        kind, colon, name = str(entry).partition(":")
        if colon and kind == "role":
            words.append(f"every {name}")
        elif colon and kind == "group":
            words.append(f"members of {name}")
        else:
            words.append(str(entry))
    who = ", ".join(words) or "writers of the repository"
    if not approval.spec.get("allow_self", False):
        who += "; not the person who caused the run"
    return who
