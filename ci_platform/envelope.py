"""The envelope: routing metadata wrapped around a run's params when it is created.

It tells the dispatcher whose code to load. It is a hint, never an authority: every activation
checks it against the run's row. It holds no secret and grants nothing, so authors may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ci_platform.errors import EnvelopeMismatch
from ci_platform.model import Json, Resume, Run

KEY = "__dispatch"


@dataclass(frozen=True, slots=True)
class Dispatch:
    repository_id: str
    pipeline: str
    ref: str
    commit: str
    resume: str


def wrap(dispatch: Dispatch, params: Json) -> dict[str, Json]:
    """Wrap params. Always wraps and never looks inside: a `__dispatch` in params stays params."""
    fields = {name: getattr(dispatch, name) for name in Dispatch.__dataclass_fields__}
    return {KEY: fields, "params": params}


def unwrap(payload: Mapping[str, Json]) -> tuple[Dispatch, Json]:
    """Take an envelope apart. Raises EnvelopeMismatch if it is not exactly one."""
    fields = payload.get(KEY)
    if set(payload) != {KEY, "params"} or not isinstance(fields, dict):
        raise EnvelopeMismatch(f"the payload is not an envelope: it has {sorted(payload)}")
    if set(fields) != set(Dispatch.__dataclass_fields__):
        raise EnvelopeMismatch(f"the envelope has the fields {sorted(fields)}")
    return Dispatch(**fields), payload["params"]


def params_of(run: Run) -> Json:
    """Unwrap a run's params, checking the envelope against its row, which is the authority."""
    dispatch, params = unwrap(run.payload)
    row = {
        "repository_id": run.repository_id,
        "pipeline": run.pipeline,
        "ref": run.ref,
        "resume": run.resume.value,
    }
    if run.resume is Resume.PINNED:
        row["commit"] = run.commit
    for name, value in row.items():
        if getattr(dispatch, name) != value:
            raise EnvelopeMismatch(
                f"{run.id}: the envelope says {name} {getattr(dispatch, name)!r}, the row {value!r}"
            )
    return params
