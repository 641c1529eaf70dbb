"""What the author's code gets as `event`: made from the run's row, the same in each activation."""

from __future__ import annotations

from ci_platform.engine import iso
from ci_platform.envelope import params_of, unwrap
from ci_platform.model import Json, Run

_BRANCH, _TAG = "refs/heads/", "refs/tags/"


def author_event(run: Run) -> dict[str, Json]:
    """Unwrap the envelope, checked against the row. Raises EnvelopeMismatch."""
    params = params_of(run)
    dispatch, _ = unwrap(run.payload)
    return {
        "params": params,
        "trigger": run.trigger,
        "ref": run.ref,
        "branch": run.ref.removeprefix(_BRANCH) if run.ref.startswith(_BRANCH) else None,
        "tag": run.ref.removeprefix(_TAG) if run.ref.startswith(_TAG) else None,
        "commit": dispatch.commit,  # of the trigger; with resume = latest, newer code may run
        "before": run.event.get("before"),
        "message": run.event.get("message"),
        "actor": run.event.get("actor") or run.actor,
        "timestamp": iso(run.created_ms),
        "run_id": run.id,
        "number": run.number,
        "payload": run.event.get("payload"),
    }
