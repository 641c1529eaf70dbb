"""From a commit to a new run: what the file says of itself, and the row it becomes.

Shared by people's starts (runs.py) and pushes (pushes.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ci_platform import envelope
from ci_platform.commands.parts import Parts
from ci_platform.errors import InvalidRequest, RunNotFound
from ci_platform.model import (
    Description,
    ErrorInfo,
    Json,
    NewRun,
    PipelineDescription,
    RepositoryId,
    Resume,
    Run,
    RunId,
    SourceFiles,
)

PIPELINE_FILE = ".ci/pipeline.py"  # also the name of the pipeline of a run whose file does not load
_LINE = re.compile(r'File "[^"\n]*", line (\d+)')


def described(parts: Parts, source: SourceFiles) -> Description:
    """What the files say of themselves: asked of the sandbox once per code."""
    known = parts.store.descriptions.get(source.digest)
    if known is None:
        known = parts.describe(source)
        parts.store.descriptions.put(source.digest, known)
    return known


def chosen(description: Description, name: str | None) -> PipelineDescription:
    """The pipeline of that name, or the only one. Raises InvalidRequest listing them."""
    if description.error is not None:
        raise InvalidRequest(load_failure(description.error), field="ref")
    names = [pipeline.name for pipeline in description.pipelines]
    if name is None and len(names) == 1:
        return description.pipelines[0]
    for pipeline in description.pipelines:
        if pipeline.name == name:
            return pipeline
    listed = ", ".join(names) or "none"
    problem = "name one" if name is None else f"there is no pipeline {name[:256]!r}"
    raise InvalidRequest(f"{problem}; {PIPELINE_FILE} declares: {listed}", field="pipeline")


def load_failure(error: ErrorInfo) -> str:
    """One line for the pusher: `… does not load: line 3: SyntaxError: invalid syntax`."""
    lines = _LINE.findall(error.traceback)
    where = f"line {lines[-1]}: " if lines else ""
    message = error.message.splitlines()[0] if error.message else ""
    return f"{PIPELINE_FILE} does not load: {where}{error.type}: {message}"[:1000]


def new_run(
    run_id: RunId,
    repository_id: RepositoryId,
    pipeline: PipelineDescription,
    *,
    ref: str,
    commit: str,
    params: Json,
    resume: Resume | None,
    trigger: str,
    event: Mapping[str, Json],
    actor: str,
    actor_id: str | None,
    trusted: bool = True,
) -> NewRun:
    policy = resume or pipeline.resume
    dispatch = envelope.Dispatch(repository_id, pipeline.name, ref, commit, policy.value)
    return NewRun(
        id=run_id,
        repository_id=repository_id,
        pipeline=pipeline.name,
        ref=ref,
        commit=commit,
        resume=policy,
        trigger=trigger,
        payload=envelope.wrap(dispatch, params),
        event=event,
        actor=actor,
        actor_id=actor_id,
        trusted=trusted,
        timeout_ms=pipeline.timeout_ms,
    )


def create(parts: Parts, new: Sequence[NewRun], *, skip_existing: bool = False) -> list[Run]:
    """Create runs whose commits are kept alive from before they exist."""
    for run in new:
        parts.source.keep(run.repository_id, run.commit, run.id)
    created: list[Run] = []
    try:
        created = parts.store.runs.create(new, skip_existing=skip_existing)
    finally:
        made = {run.id for run in created}
        for run in new:
            if run.id not in made:
                _put_back(parts, run)
    return created


def _put_back(parts: Parts, new: NewRun) -> None:
    """A run was not created: its id is another's, whose commit must stay kept, or nobody's."""
    try:
        other = parts.store.runs.get(new.id)
    except RunNotFound:
        parts.source.release(new.repository_id, new.id)
        return
    if other.repository_id == new.repository_id:
        parts.source.keep(other.repository_id, other.commit, other.id)
    else:
        parts.source.release(new.repository_id, new.id)
