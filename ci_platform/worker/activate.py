"""The duty of activations: claim due runs, execute their code until it waits or ends.

What the code asks for is journaled by activation.py; here is which code runs, and how each way of
ending is written down.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import assert_never

from ci_platform.engine import (
    Decision,
    Pen,
    RunView,
    bodies_lost,
    body_overran,
    errored,
    mismatched,
    raised,
    returned,
    seed_of,
    unreadable,
)
from ci_platform.errors import (
    EnvelopeMismatch,
    InternalError,
    LeaseLost,
    NotFound,
    SluiceError,
    SourceError,
)
from ci_platform.model import (
    Broke,
    EntryKind,
    ErrorInfo,
    Json,
    Mismatch,
    Outcome,
    Raised,
    Returned,
    SourceFiles,
    StepKind,
    Suspended,
)
from ci_platform.ports import Claim
from ci_platform.ports.sandbox import Activation
from ci_platform.scheduling import Share
from ci_platform.worker.activation import Decider, Over, Session
from ci_platform.worker.author_event import author_event
from ci_platform.worker.dispatch import Candidate, candidates, divergence_policy
from ci_platform.worker.holding import Holding
from ci_platform.worker.lines import Spool
from ci_platform.worker.settings import Tools
from ci_platform.worker.strays import Strays

CHILD = "run"  # the trigger of a run that another one started
WHY_MAX = 1_000  # characters of an error that the journal keeps
SANDBOX_TRIES_MAX = 3  # sandboxes that may break under one activation

_log = logging.getLogger(__name__)


class Activations:
    """Claims runs and executes them. `execute` is safe to call from several threads."""

    def __init__(self, tools: Tools, spool: Spool, strays: Strays, holding: Holding) -> None:
        self._tools = tools
        self._spool = spool
        self._strays = strays
        self._holding = holding
        self._lock = threading.Lock()
        self._in_hand: Counter[str] = Counter()  # claimed runs by repository

    def run_once(self) -> int:
        """Execute what is due now, one after the other. Returns how many runs that was."""
        claims = self.claim(self._tools.settings.activations_max)
        for claim in claims:
            self.execute(claim)
        return len(claims)

    def claim(self, limit: int, share: Share | None = None) -> Sequence[Claim]:
        tools = self._tools
        claims = tools.store.runs.claim(
            tools.id, limit=limit, lease_ms=tools.settings.lease_ms, share=share
        )
        with self._lock:
            self._in_hand.update(claim.run.repository_id for claim in claims)
        for claim in claims:
            self._holding.take(claim.run)
        return claims

    def share(self) -> Share:
        """What each repository may have of this worker, and has."""
        with self._lock:
            return Share(self._tools.settings.activations_each, dict(self._in_hand))

    def execute(self, claim: Claim) -> None:
        """Activate a claimed run. Never raises: whatever happens, the worker goes on."""
        run_id = claim.run.id
        try:
            self._execute(claim)
        except LeaseLost as lost:
            _log.info("%s: let go: %s", run_id, lost)
        except InternalError as error:
            _log.warning("%s: the activation was cut short: %s", run_id, error)
            self._stray(claim, error.detail)
        except Exception as error:
            # A bug of ours must cost its run an activation, and not the worker all its runs. The
            # engine's LOST_LEASES_MAX bounds how often that is tried.
            _log.exception("%s: the activation failed", run_id)
            self._stray(claim, f"{type(error).__name__}: {error}")
        finally:
            self._holding.drop(claim.run)
            with self._lock:
                self._in_hand[claim.run.repository_id] -= 1
                self._in_hand += Counter()  # forgets who has none

    def _stray(self, claim: Claim, why: str) -> None:
        run = claim.run

        def give_back() -> None:
            now = self._tools.store.runs.get(run.id)
            if now.worker == run.worker and now.fence == run.fence:
                fresh = Claim(now, self._tools.store.runs.journal(run.id))
                Session(self._tools, self._spool, fresh).hand_back(why[:WHY_MAX])

        failures = sum(entry.kind is EntryKind.LEASE_EXPIRED for entry in claim.entries)
        self._strays.add(run, give_back, failures=failures)

    def _execute(self, claim: Claim) -> None:
        try:
            session = Session(self._tools, self._spool, claim)
        except InternalError as error:
            _log.error("%s: its journal cannot be read: %s", claim.run.id, error)
            self._tools.store.runs.append(unreadable(claim.run, error, claim.run.fence))
            return
        try:
            self._activate(session)
        finally:
            session.close()
        view = session.view
        if view.terminal and (
            view.run.trigger == CHILD or any(key.kind is StepKind.RUN for key in view.steps)
        ):
            self._tools.family_pending()  # at once; the duty would come to it too

    def _activate(self, session: Session) -> None:
        session.settle()
        if session.over:
            return
        try:
            event = author_event(session.run)
            for candidate in candidates(session.view, self._tools.source):
                outcome = self._try(session, candidate, event)
                if candidate.trial and isinstance(outcome, Raised) and not session.reached:
                    self._fall_back(session, candidate, outcome)
                else:
                    self._conclude(session, outcome)
                    return
        except EnvelopeMismatch as error:
            self._audit(session, error)
            self._errored(session, error, "envelope")

    def _try(self, session: Session, candidate: Candidate, event: Mapping[str, Json]) -> Outcome:
        """Execute one commit's code."""
        tools, run = self._tools, session.run
        trial = candidate.commit if candidate.trial else None
        session.begin(trial, "accept")
        session.commit = candidate.commit
        try:
            files = tools.source.load(run.repository_id, candidate.commit)
        except SourceError as error:
            info = ErrorInfo(type(error).__name__, error.detail, error.traceback)
            return Raised(info, loading=True)
        except NotFound as error:
            self._errored(session, error, "source")
            return Suspended()
        policy = "accept"
        if not candidate.strict:
            policy = divergence_policy(files, run.pipeline, tools.store.descriptions)
        broke, tries = Broke(""), 0
        while tries < SANDBOX_TRIES_MAX:
            session.begin(trial, policy)
            outcome = self._sandboxed(session, files, candidate, event)
            if isinstance(outcome, Raised) and outcome.commands:
                session.reached = True  # bodies have run
            if isinstance(outcome, Raised) and self._overran(session, outcome):
                continue  # an attempt is used up, so this ends
            if not isinstance(outcome, Broke):
                return outcome
            tries += 1
            broke = outcome
            _log.warning("%s: the sandbox broke: %s", run.id, broke.detail)
            if session.over:
                return Suspended()
            session.write(lambda view, now_ms: bodies_lost(view, now_ms, "the sandbox broke"))
        return broke

    def _overran(self, session: Session, outcome: Raised) -> bool:
        """Whether it was one step's body that had to be stopped, and not the run's own code."""
        key = outcome.overran
        if session.over or key is None or key not in session.view.bodies:
            return False
        asking = outcome.overran_asking
        session.write(lambda view, now_ms: body_overran(view, key, now_ms, asking=asking))
        return not session.over

    def _sandboxed(
        self,
        session: Session,
        files: SourceFiles,
        candidate: Candidate,
        event: Mapping[str, Json],
    ) -> Outcome:
        run = session.run
        activation = Activation(
            source=files,
            pipeline=run.pipeline,
            event=event,
            seed=seed_of(run.id),
            entries=tuple(session.entries),
            strict=candidate.strict,
            trusted=run.trusted,
            always_hibernate=self._tools.settings.always_hibernate,
        )
        try:
            return self._tools.sandbox.activate(activation, session)
        except Over:
            return Suspended()

    def _fall_back(self, session: Session, candidate: Candidate, outcome: Raised) -> None:
        """Newer code does not work: say so, once, and stay on the commit that does."""
        error = outcome.error
        detail = {
            "change": "fell_back",
            "commit": candidate.commit,
            "error": {"type": error.type, "message": error.message, "traceback": error.traceback},
        }

        def decide(view: RunView, now_ms: int) -> Decision:
            pen = Pen(view, now_ms)
            pen.write(EntryKind.DIVERGED, detail)
            return pen.decision()

        session.write(decide)

    def _conclude(self, session: Session, outcome: Outcome) -> None:
        """Write how it ended, unless the lease is let go already."""
        if isinstance(outcome, Suspended):
            session.hand_back("hibernated")  # unless the run has ended
        elif isinstance(outcome, Broke):
            said = f"{SANDBOX_TRIES_MAX} sandboxes broke in a row: {outcome.detail}"
            self._errored(session, InternalError(said), "sandbox")
        else:
            ends = () if isinstance(outcome, Mismatch) else outcome.commands
            session.conclude(self._ending(outcome), ends)

    def _ending(self, outcome: Returned | Raised | Mismatch) -> Decider:
        limits = self._tools.settings.limits

        def decide(view: RunView, now_ms: int) -> Decision:
            match outcome:
                case Returned():
                    return returned(view, outcome, now_ms, limits)
                case Raised():
                    return raised(view, outcome, now_ms, limits)
                case Mismatch():
                    return mismatched(view, outcome, now_ms)
                case _:
                    assert_never(outcome)

        return decide

    def _errored(self, session: Session, error: SluiceError, reason: str) -> None:
        _log.error("%s: errored (%s): %s", session.run.id, reason, error)
        session.conclude(lambda view, now_ms: errored(view, error, now_ms, reason=reason))

    def _audit(self, session: Session, error: EnvelopeMismatch) -> None:
        tools = self._tools
        detail = {"message": error.detail, "worker": tools.id}
        tools.store.audit.record(
            tools.clock.now_ms(), "sluice", "run.envelope_mismatch", session.run.id, detail
        )
