"""The dispatcher: at every activation, which commit's code a run executes.

Pinned runs execute the commit they were created with. Runs that follow their ref try its newest
commit first and fall back to the last one that worked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ci_platform.engine import RunView
from ci_platform.model import Resume, SourceFiles
from ci_platform.ports import DescriptionStore
from ci_platform.ports.repositories import Source

ACCEPT = "accept"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A commit to execute, in order of preference."""

    commit: str
    trial: bool  # newer than the code that has worked so far: if it does not work, go back
    strict: bool  # the code that wrote the journal: a replay that differs is a mismatch


def candidates(view: RunView, source: Source) -> Iterator[Candidate]:
    """The commits to try. The last one is never a trial."""
    run = view.run
    if run.resume is Resume.LATEST:
        newest = source.resolve(run.repository_id, run.ref)
        if newest is not None and newest != view.commit and newest not in view.fell_back:
            yield Candidate(newest, trial=True, strict=False)
    yield Candidate(view.commit, trial=False, strict=view.step_commits <= {view.commit})


def divergence_policy(files: SourceFiles, pipeline: str, descriptions: DescriptionStore) -> str:
    """What the pipeline's file says about differences from the journal."""
    description = descriptions.get(files.digest)
    for declared in description.pipelines if description is not None else ():
        if declared.name == pipeline:
            return declared.on_divergence
    return ACCEPT
