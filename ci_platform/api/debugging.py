"""Routes for trying a command again elsewhere: what it was told, and the layers below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from ci_platform.api.answers import Answer
from ci_platform.api.artifacts import DOWNLOAD
from ci_platform.api.desk import Caller, From
from ci_platform.model import Json, RunId
from ci_platform.step_commands import StepCommand, StepCommands

router = APIRouter(tags=["runs"])


class CommandAnswer(Answer):
    """A command of a step, with everything that one needs to run it again, but for secrets."""

    run_id: str
    number: int
    repository: str  # owner/name
    step: str  # sh:build#2
    state: str
    attempts: int
    exit_code: int | None
    error: str | None
    secrets: Sequence[str]  # names of what it was given besides
    spec: Mapping[str, Json]

    @classmethod
    def of(cls, found: StepCommand, repository: str) -> CommandAnswer:
        step = found.step
        value = step.value if step.error is None else step.error.get("data")
        code = value.get("exit_code") if isinstance(value, Mapping) else None
        return cls(
            run_id=found.run.id,
            number=found.run.number,
            repository=repository,
            step=str(step.key),
            state=step.state.value,
            attempts=step.attempt,
            exit_code=code,
            error=None if step.error is None else str(step.error.get("message")),
            secrets=list(found.spec.secrets),
            spec=asdict(found.spec),
        )


@router.get("/runs/{run_id}/commands/{step}")
def get_command(caller: From, run_id: str, step: str) -> CommandAnswer:
    """What the last attempt of a step of kind `sh` was told: `build`, or `sh:build#2`."""
    actor = caller.actor()
    found = _commands(caller).command(actor, RunId(run_id), step)
    names = caller.desk.queries.names([found.run.repository_id])
    return CommandAnswer.of(found, names[found.run.repository_id].full_name)


@router.get(
    "/runs/{run_id}/layers/{digest}",
    response_class=StreamingResponse,
    responses={200: {"content": {DOWNLOAD: {}}, "description": "A tar, compressed with zstd."}},
)
def get_layer(caller: From, run_id: str, digest: str) -> StreamingResponse:
    """The file changes of one of its commands."""
    pieces = _commands(caller).layer(caller.actor(), RunId(run_id), digest)
    return StreamingResponse(pieces, 200, {}, DOWNLOAD)


def _commands(caller: Caller) -> StepCommands:
    return StepCommands(caller.desk.queries)
