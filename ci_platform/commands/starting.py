"""From a commit to a new run: what the file says of itself, and the row it becomes.

Shared by people's starts (runs.py) and pushes (pushes.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from ci_platform import envelope
from ci_platform.commands.parts import Parts
from ci_platform.commands.places import place_of
from ci_platform.commands.superseding import supersede
from ci_platform.errors import InvalidRequest, RequestError, SluiceError
from ci_platform.model import (
    AuditNote,
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
from ci_platform.ports import RunFilter
from ci_platform.scheduling import OnNew

log = logging.getLogger(__name__)

PIPELINE_FILE = ".ci/pipeline.py"  # also the name of the pipeline of a run whose file does not load
_PLACE = re.compile(r" \([^()]*, line \d+\)$")  # as SyntaxError says it once more
_LINE = re.compile(r'File "[^"\n]*", line (\d+)')


def described(parts: Parts, source: SourceFiles) -> Description:
    """What the files say of themselves: asked of the sandbox once per code that loads.

    Code that did not load is asked again: it may have hit a limit on a busy machine.
    """
    known = parts.store.descriptions.get(source.digest)
    if known is None or known.error is not None:
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
    message = _PLACE.sub("", error.message.splitlines()[0]) if error.message else ""
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
    priority: int = 0,
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
        place=place_of(
            pipeline, ref=ref, commit=commit, event=trigger, actor=actor, priority=priority
        ),
    )


def create(
    parts: Parts,
    new: Sequence[NewRun],
    *,
    skip_existing: bool = False,
    notes: Sequence[AuditNote] = (),
) -> list[Run]:
    """Create runs whose commits are kept alive from before they exist. `notes`: for the audit log,
    one for each, or none."""
    commits = {(run.repository_id, run.commit) for run in new}
    for repository_id, commit in commits:
        parts.source.keep(repository_id, commit)
    try:
        created = parts.store.runs.create(new, skip_existing=skip_existing, notes=notes)
    except RequestError:
        for repository_id, commit in commits:
            let_go(parts, repository_id, commit)
        raise
    for repository_id, commit in commits:
        # Again: whoever deleted the last other run of it may have let go of it in between.
        parts.source.keep(repository_id, commit)
    if any(run.place.on_new is not OnNew.QUEUE for run in created):
        _supersede(parts)
    return created


def _supersede(parts: Parts) -> None:
    """At once, so that nobody waits for a worker to notice. The runs are created in any case."""
    try:
        supersede(parts)
    except SluiceError as error:
        log.warning("superseded runs are left to the workers: %s", error)


def let_go(parts: Parts, repository_id: RepositoryId, commit: str) -> None:
    """Stop keeping a commit, unless a run is there that needs it."""
    if _in_use(parts, repository_id, commit):
        return
    parts.source.release(repository_id, commit)
    if _in_use(parts, repository_id, commit):
        parts.source.keep(repository_id, commit)  # a run was created while we let go


def _in_use(parts: Parts, repository_id: RepositoryId, commit: str) -> bool:
    which = RunFilter(repository_ids=[repository_id], commit=commit)
    return bool(parts.store.runs.list(which, limit=1).runs)
