"""What of many runs a person should look at first. Pure; called by queries for the home page."""

from __future__ import annotations

from collections.abc import Sequence

from ci_platform.model import Run, RunState


def newly_failing(finished: Sequence[Run]) -> list[Run]:
    """Runs that failed where the one before them, of the same pipeline and ref, did not.

    `finished` is newest first; a first run that fails counts too.
    """
    lanes: dict[tuple[str, str, str], list[Run]] = {}
    for run in finished:
        lane = lanes.setdefault((run.repository_id, run.pipeline, run.ref), [])
        if len(lane) < 2 and run.state is not RunState.CANCELLED:
            lane.append(run)
    failed = (RunState.FAILED, RunState.ERRORED)
    return [
        lane[0]
        for lane in lanes.values()
        if lane and lane[0].state in failed and not (len(lane) > 1 and lane[1].state in failed)
    ]
