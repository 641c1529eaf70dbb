"""What the engine decides: entries to add, and rows that change with them.

A decision moves its view forward as if it were written, so that decisions can follow each other
and `propose` need not fold again. If the append is then refused, the view is of no more use: fold
the journal, with what is new in it, and decide again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.effects import Effect
from ci_platform.engine.fold import RunView
from ci_platform.engine.summary import update
from ci_platform.model import Draft, Entry, EntryKind, Json, StepKey
from ci_platform.ports import Append


@dataclass(frozen=True, slots=True)
class Decision:
    """Drafts and effects for one append. False when there is nothing to write."""

    expected_seq: int  # the journal's end that it was made for
    drafts: tuple[Draft, ...] = ()
    effects: tuple[Effect, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.drafts or self.effects)

    def __add__(self, later: Decision) -> Decision:
        """Both in one append; `later` was made on the view that this one had moved."""
        return Decision(self.expected_seq, self.drafts + later.drafts, self.effects + later.effects)


def propose(view: RunView, decision: Decision, now_ms: int, *, fence: int | None = None) -> Append:
    """The append that writes a decision; `view` is the one it has moved.

    `fence` is given by the holder of the run's lease, and by nobody else.
    """
    return Append(
        run_id=view.run.id,
        expected_seq=decision.expected_seq,
        drafts=decision.drafts,
        update=update(view, now_ms),
        fence=fence,
        effects=decision.effects,
        identity=(view.run.repository_id, view.run.number),
        group=view.run.place.group,
    )


class Pen:
    """Writes a decision: each draft is applied to the view at once."""

    __slots__ = ("view", "now_ms", "_expected_seq", "_drafts", "_effects")

    def __init__(self, view: RunView, now_ms: int) -> None:
        self.view = view
        self.now_ms = now_ms
        self._expected_seq = view.seq
        self._drafts: list[Draft] = []
        self._effects: list[Effect] = []

    def write(
        self,
        kind: EntryKind,
        data: Mapping[str, Json] | None = None,
        *,
        key: StepKey | None = None,
        attempt: int | None = None,
    ) -> None:
        draft = Draft(kind, data or {}, key, attempt)
        self.view.apply(
            Entry(self.view.seq + 1, kind, self.now_ms, draft.data, key=key, attempt=attempt)
        )
        self._drafts.append(draft)

    def cause(self, effect: Effect) -> None:
        self._effects.append(effect)

    def decision(self) -> Decision:
        return Decision(self._expected_seq, tuple(self._drafts), tuple(self._effects))
