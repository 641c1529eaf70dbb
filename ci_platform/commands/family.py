"""Child runs: starting one for a step, and telling parent and child when the other has ended.

Everything here may be repeated: a child's id belongs to its parent and step, and a link stays due
until what it asks for is done. Called by workers, at once and as a duty.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ci_platform.commands.changing import change
from ci_platform.commands.inputs import check_inputs
from ci_platform.commands.parts import Parts
from ci_platform.commands.quota import check_quota
from ci_platform.commands.starting import chosen, create, described, new_run
from ci_platform.engine import Child, Decision, RunView, child_ended, outside, unwanted
from ci_platform.engine.fold import fold
from ci_platform.engine.ids import derived_id
from ci_platform.errors import Conflict, InvalidRequest, RequestError, RunNotFound, SourceError
from ci_platform.family import DEPTH_MAX, Kin, Link
from ci_platform.model import Json, Run, RunId, StepKey
from ci_platform.scheduling import Place

REASON = "parent"  # of a child that was cancelled because of its parent
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Family:
    parts: Parts

    def start(self, parent: Run, commit: str, key: StepKey, config: Mapping[str, Json]) -> Child:
        """Create the run that a step starts, at the commit whose code asks for it."""
        try:
            run = self._start(parent, commit, key, config)
        except (RequestError, SourceError) as error:
            return Child("", 0, error.detail)
        return Child(run.id, run.number)

    def _start(self, parent: Run, commit: str, key: StepKey, config: Mapping[str, Json]) -> Run:
        runs = self.parts.store.runs
        run_id = RunId(derived_id("run", parent.created_ms, parent.id, key))
        try:
            return runs.get(run_id)
        except RunNotFound:
            pass  # the usual case
        link = self.parts.store.family.parent(parent.id)
        depth = 1 if link is None else link.kin.depth + 1
        if depth > DEPTH_MAX:
            raise InvalidRequest(f"runs that start each other go {DEPTH_MAX} deep at most")
        check_quota(self.parts, self.parts.repositories.by_id(parent.repository_id))
        source = self.parts.source.load(parent.repository_id, commit)
        pipeline = chosen(described(self.parts, source), config["pipeline"])
        new = new_run(
            run_id,
            parent.repository_id,
            pipeline,
            ref=parent.ref,
            commit=commit,
            params=check_inputs(pipeline, config.get("params")),
            resume=None,
            trigger="run",
            event=parent.event,
            actor=parent.actor,
            actor_id=parent.actor_id,
            trusted=parent.trusted,
            priority=parent.place.priority,
        )
        if new.place.group is not None and new.place.group == parent.place.group:
            # Else it would wait for the place that its parent has, which waits for it.
            new = replace(new, place=Place(priority=parent.place.priority))
        kin = Kin(parent.id, str(key), bool(config.get("wait", True)), depth)
        create(self.parts, [replace(new, kin=kin)], skip_existing=True)
        return runs.get(run_id)

    def pending(self) -> int:
        """Do what links ask for. Returns how many were settled."""
        count = 0
        for link in self.parts.store.family.due():
            try:
                done = self._settle(link)
            except (RunNotFound, Conflict) as error:  # deleted meanwhile; or busy: the next turn
                _log.info("%s: its link stays due: %s", link.child_id, error)
                continue
            if done:
                self.parts.store.family.settled(link)
                count += 1
        return count

    def _settle(self, link: Link) -> bool:
        """Act on a link. False: it is too early."""
        runs, kin = self.parts.store.runs, link.kin
        key = StepKey.parse(kin.step)
        child = runs.get(RunId(link.child_id))
        if child.state.terminal:
            return not kin.waits or self._tell(RunId(kin.parent_id), key, child)
        parent = runs.get(RunId(kin.parent_id))
        view = fold(parent, runs.journal(parent.id))
        if unwanted(view, key, waits=kin.waits):
            self._cancel(child, parent, undo=view.rollback is not None)
        return True

    def tell(self, child: Run) -> None:
        """Tell the parent of a run that has ended now: the run is about to be deleted, and nobody
        could tell it then. Raises Conflict while the parent has not begun to wait for it."""
        link = self.parts.store.family.parent(child.id)
        if link is None or not link.is_due or not link.kin.waits:
            return
        try:
            told = self._tell(RunId(link.kin.parent_id), StepKey.parse(link.kin.step), child)
        except RunNotFound:
            return
        if not told:
            raise Conflict(
                f"{child.id} cannot be deleted yet: {link.kin.parent_id} has started it, and has "
                "not noted that"
            )

    def _tell(self, parent_id: RunId, key: StepKey, child: Run) -> bool:
        early = False

        def decide(view: RunView, now_ms: int) -> Decision:
            nonlocal early
            decision = child_ended(view, key, child, now_ms)
            early = decision is None
            return Decision(view.seq) if decision is None else decision

        change(self.parts, parent_id, decide)
        return not early

    def _cancel(self, child: Run, parent: Run, *, undo: bool) -> None:
        actor = f"run #{parent.number}"

        def decide(view: RunView, now_ms: int) -> Decision:
            if view.terminal:
                return Decision(view.seq)
            return outside.cancel(view, actor, now_ms, reason=REASON, rollback=undo)

        change(self.parts, child.id, decide)
