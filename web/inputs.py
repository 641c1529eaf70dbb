"""Typed inputs: of a manual run (`on_manual(inputs=…)`) and of an approval's form.

Reads the JSON in which a pipeline declares them, and turns a form's strings back into JSON. Whether
the values are allowed is for the commands to say.
"""

from __future__ import annotations

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
    choices: Sequence[str] = ()
    default: Json = None
    required: bool = False
    help: str = ""


def inputs_of(declared: Json) -> list[Input]:
    """Read declared inputs: name -> {type, choices, default, required, label, help}.

    A bare value is a default and gives the type; a bare list gives choices.
    """
    if not isinstance(declared, Mapping):
        return []
    return [_input(str(name), spec) for name, spec in list(declared.items())[:INPUTS_MAX]]


def _input(name: str, spec: Json) -> Input:
    if isinstance(spec, list | tuple):
        spec = {"choices": list(spec)}
    elif not isinstance(spec, Mapping):
        spec = {"default": spec}
    choices = [str(choice) for choice in spec.get("choices") or ()]
    default = spec.get("default")
    declared = str(spec.get("type") or "").lower()
    if choices:
        kind = "choice"
    elif declared in ("boolean", "bool") or isinstance(default, bool):
        kind = "boolean"
    elif declared in ("number", "integer", "float", "int") or isinstance(default, int | float):
        kind = "number"
    else:
        kind = "text"
    return Input(
        name=name,
        kind=kind,
        label=str(spec.get("label") or name.replace("_", " ")),
        choices=choices,
        default=default,
        required=bool(spec.get("required", False)) and kind != "boolean",
        help=str(spec.get("help") or spec.get("description") or ""),
    )


def read_inputs(inputs: Sequence[Input], fields: Mapping[str, str], prefix: str) -> dict[str, Json]:
    """Take the values of inputs from a form's fields, as JSON. Empty ones are left out."""
    values: dict[str, Json] = {}
    for one in inputs:
        text = fields.get(prefix + one.name, "")
        if one.kind == "boolean":
            values[one.name] = text == "true"
        elif not text and not one.required:
            continue
        elif one.kind == "number":
            values[one.name] = _number(one, text)
        else:
            values[one.name] = text
    return values


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
