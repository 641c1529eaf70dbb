from __future__ import annotations

import pytest

from ci_platform.commands.inputs import check_form, check_inputs
from ci_platform.errors import InvalidRequest
from ci_platform.model import Json, PipelineDescription, Trigger

FORM: dict[str, Json] = {
    "target": {"type": "choice", "options": ["staging", "production"], "default": "staging"},
    "version": {"type": "text", "default": None},
    "count": {"type": "number", "default": 1, "minimum": 1, "maximum": 9},
    "force": {"type": "boolean", "default": False},
}


def test_defaults_are_filled_in() -> None:
    assert check_form(FORM, {"version": "1.0"}, field="params") == {
        "target": "staging",
        "version": "1.0",
        "count": 1,
        "force": False,
    }


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "params.version"),
        ({"version": None}, "params.version"),
        ({"version": 1}, "params.version"),
        ({"version": "x" * 10_001}, "params.version"),
        ({"version": "1", "target": "moon"}, "params.target"),
        ({"version": "1", "target": ["staging"]}, "params.target"),
        ({"version": "1", "count": 10}, "params.count"),
        ({"version": "1", "count": True}, "params.count"),
        ({"version": "1", "count": float("nan")}, "params.count"),
        ({"version": "1", "force": "yes"}, "params.force"),
        ({"version": "1", "other": 1}, "params.other"),
    ],
)
def test_a_bad_value_is_refused_by_its_field(values: dict[str, Json], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_form(FORM, values, field="params")
    assert caught.value.field == field


def test_a_pipeline_without_inputs_takes_any_json() -> None:
    pipeline = PipelineDescription("CI", (Trigger("push"), Trigger("manual")))
    assert check_inputs(pipeline, [1, {"a": None}]) == [1, {"a": None}]


def test_a_pipeline_with_inputs_takes_an_object_only() -> None:
    pipeline = PipelineDescription("CI", (Trigger("manual", inputs=FORM),))
    with pytest.raises(InvalidRequest, match="object"):
        check_inputs(pipeline, [1])
