"""A new run's place in the queue: its group, filled in from what it is, and its priority."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from string import Formatter

from ci_platform.commands.triggers import BRANCH, TAG
from ci_platform.errors import InvalidRequest
from ci_platform.model import Json, PipelineDescription
from ci_platform.scheduling import PRIORITY_MAX, OnNew, Place

GROUP_BYTES = 500  # longer ones are cut, and told apart by a digest


def place_of(
    pipeline: PipelineDescription, *, ref: str, commit: str, event: str, actor: str, priority: int
) -> Place:
    """Where a run of this pipeline stands. `event` is what triggered it."""
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidRequest(
            f"priority is {priority}: expected 0 to {PRIORITY_MAX}", field="priority"
        )
    declared = pipeline.concurrency
    if declared is None:
        return Place(priority=priority)
    values = {
        "ref": ref,
        "branch": ref.removeprefix(BRANCH) if ref.startswith(BRANCH) else "",
        "tag": ref.removeprefix(TAG) if ref.startswith(TAG) else "",
        "pipeline": pipeline.name,
        "event": event,
        "commit": commit,
        "actor": actor,
    }
    return Place(
        group=_filled(str(declared["group"]), values) or None,  # {tag} of a branch: no group
        limit=int(declared["limit"]),
        on_new=OnNew(declared["on_new"]),
        priority=priority,
    )


def _filled(template: str, values: Mapping[str, Json]) -> str:
    """The template with its fields replaced. What is no field of ours stays as it is: the template
    comes from the sandbox, and has been checked there only."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        parts = [(template, None, None, None)]
    text = "".join(
        literal + ("" if name is None else str(values.get(name, f"{{{name}}}")))
        for literal, name, _, _ in parts
    )
    if len(text.encode()) <= GROUP_BYTES:
        return text
    digest = sha256(text.encode()).hexdigest()
    return f"{text.encode()[: GROUP_BYTES - 70].decode(errors='ignore')} {digest}"
