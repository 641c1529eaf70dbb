"""Typed forms: the params of a manual run and the form of an approval, checked alike. Pure.

The shape of a form is what `pipelines/declare.py` makes of Text, Boolean, Number and Choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ci_platform.errors import InvalidRequest
from ci_platform.model import Json, PipelineDescription

TEXT_MAX = 10_000  # characters of one field


def check_inputs(pipeline: PipelineDescription, params: Json) -> Json:
    """The params of a run somebody starts, with defaults filled in.

    A pipeline that declares no inputs takes any JSON.
    """
    for trigger in pipeline.triggers:
        if trigger.kind == "manual" and trigger.inputs:
            if not isinstance(params, Mapping):
                raise InvalidRequest("params must be a JSON object", field="params")
            return check_form(trigger.inputs, params, field="params")
    return params


def check_form(
    form: Mapping[str, Json], values: Mapping[str, Json], *, field: str
) -> dict[str, Json]:
    """Check values against a form. Raises InvalidRequest naming the field to blame."""
    unknown = sorted(set(values) - set(form))
    if unknown:
        raise InvalidRequest(
            f"there is no {unknown[0][:64]!r}; the fields are {', '.join(form) or 'none'}",
            field=f"{field}.{unknown[0][:64]}",
        )
    found: dict[str, Json] = {}
    for name, spec in form.items():
        value = values[name] if name in values else spec.get("default")
        problem = _problem(spec, value)
        if problem:
            raise InvalidRequest(f"{name} {problem}", field=f"{field}.{name}")
        found[name] = value
    return found


def _problem(spec: Mapping[str, Json], value: Json) -> str | None:
    if value is None:
        return "must be filled in"
    match spec.get("type"):
        case "boolean":
            return None if isinstance(value, bool) else "must be true or false"
        case "number":
            return _number_problem(spec, value)
        case "choice":
            options = list(spec.get("options") or ())
            return None if value in options else f"must be one of {', '.join(options)}"
        case _:
            if not isinstance(value, str):
                return "must be text"
            return None if len(value) <= TEXT_MAX else f"may have {TEXT_MAX:,} characters"


def _number_problem(spec: Mapping[str, Json], value: Json) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "must be a number"
    least, most = spec.get("minimum"), spec.get("maximum")
    if (least is not None and value < least) or (most is not None and value > most):
        return f"must be {'' if least is None else f'{least} '}to {'any' if most is None else most}"
    return None
