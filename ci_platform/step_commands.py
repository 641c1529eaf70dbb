"""The command of a step as it was run, for whoever wants to try it again on a machine of their own.

It shows what only those who may push see of a run: environment, script and every file that was
there. Secrets are names here, as everywhere. Called by the API, for `sluice debug`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ci_platform.engine import StepView, command_of, fold
from ci_platform.errors import InvalidRequest, NotFound, StepNotFound
from ci_platform.identity.access import Action, authorise
from ci_platform.model import Actor, Run, RunId, StepKey, StepKind
from ci_platform.queries import Queries
from ci_platform.shell import CommandSpec


@dataclass(frozen=True, slots=True)
class StepCommand:
    run: Run
    step: StepView
    spec: CommandSpec


@dataclass(frozen=True, slots=True)
class StepCommands:
    queries: Queries

    def command(self, actor: Actor, run_id: RunId, step: str) -> StepCommand:
        """The last attempt of a command. Raises NotFound, Forbidden, InvalidRequest."""
        run = self._run(actor, run_id)
        try:
            key = StepKey.parse(step if ":" in step else f"{StepKind.SH}:{step}")
        except ValueError as error:
            raise InvalidRequest(str(error), field="step") from error
        if key.kind is not StepKind.SH:
            raise InvalidRequest(f"{step} is no command: only steps of kind sh are", field="step")
        view = fold(run, self.queries.store.runs.journal(run_id))
        found = view.steps.get(key)
        if found is None:
            raise StepNotFound(f"run #{run.number} has no step {str(key)[:100]!r}")
        spec = command_of(view, found, found.attempt)
        return StepCommand(run, found, replace(spec, commit=found.commit))

    def layer(self, actor: Actor, run_id: RunId, digest: str) -> Iterator[bytes]:
        """A layer of the run's workspace, as it is stored."""
        run = self._run(actor, run_id)
        view = fold(run, self.queries.store.runs.journal(run_id))
        if digest not in view.layers or self.queries.kept is None:
            raise NotFound(f"run #{run.number} has no layer {digest[:64]}")
        return self.queries.kept.layer(digest)

    def _run(self, actor: Actor, run_id: RunId) -> Run:
        run = self.queries.run(actor, run_id)
        authorise(actor, Action.WRITE_REPOSITORY, run.repository_id)
        return run
