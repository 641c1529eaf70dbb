"""Typed inputs: of a manual run (`on_manual(inputs=…)`) and of an approval's form.

Reads the JSON in which a pipeline declares them, and turns a form's strings back into JSON. Whether
the values are allowed is for the commands to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ci_platform.errors import InvalidRequest
from ci_platform.model import Json

INPUTS_MAX = 100  # shown of one form


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    kind: str  # text, number, boolean, choice
    label: str
    options: Sequence[str] = ()
    default: Json = None
    required: bool = False  # it has no default
    minimum: int | float | None = None
    maximum: int | float | None = None


def inputs_of(declared: Json) -> list[Input]:
    """Read a declared form: name -> {type, default, label, options, minimum, maximum}."""
    if not isinstance(declared, Mapping):
        return []
    return [_input(str(name), spec) for name, spec in list(declared.items())[:INPUTS_MAX]]


def _input(name: str, spec: Json) -> Input:
    kind = str(spec.get("type") or "text")
    default = spec.get("default")
    return Input(
        name=name,
        kind=kind,
        label=str(spec.get("label") or name.replace("_", " ")),
        options=[str(option) for option in spec.get("options") or ()],
        default=default,
        required=default is None and kind in ("text", "number"),
        minimum=spec.get("minimum"),
        maximum=spec.get("maximum"),
    )


def read_inputs(inputs: Sequence[Input], fields: Mapping[str, str], prefix: str) -> dict[str, Json]:
    """Take the values of inputs from a form's fields, as JSON. What is empty is left out."""
    values: dict[str, Json] = {}
    for one in inputs:
        text = fields.get(prefix + one.name, "")
        if one.kind == "boolean":
            values[one.name] = text == "true"
        elif one.kind == "number" and text:
            values[one.name] = _number(one, text)
        elif text or (one.kind == "text" and not one.required):
            values[one.name] = text
    return values


def read_json(text: str, field: str) -> Json:
    """A JSON value that a person wrote; nothing is null."""
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}", field=field) from error


def _number(one: Input, text: str) -> int | float:
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidRequest(
            f"{one.label} must be a number, not {text[:40]!r}", field=one.name
        ) from error
    if value != value or value in (float("inf"), float("-inf")):
        raise InvalidRequest(f"{one.label} must be a finite number", field=one.name)
    return int(value) if value.is_integer() and "." not in text else value
