"""What guests say: every word of it is checked, and nothing they say breaks the reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_platform.model import (
    AbandonStep,
    FinishAttempt,
    NoteDivergence,
    StartStep,
    StepKey,
    StepKind,
)
from ci_platform.sandbox import decode
from ci_platform.sandbox.decode import BadMessage

RETRIES: Any = {"limit": 5, "delay_ms": 10_000, "backoff": "exponential"}
DO: Any = {"retries": RETRIES, "timeout_ms": 600_000, "sensitive": False, "rollback": False}
SH: Any = {
    "script": "make",
    "env": {"A": "1"},
    "secrets": [],
    "cwd": ".",
    "shell": "sh",
    "timeout_ms": 1_000,
    "retries": RETRIES,
    "labels": [],
    "image": None,
    "network": [],
    "artifacts": ["dist/*"],
    "reports": [],
    "cache": None,
    "cache_dirs": {},
    "allow_failure": False,
    "rollback": False,
}
APPROVAL: Any = {
    "approvers": ["ann"],
    "required": 1,
    "allow_self": False,
    "form": {},
    "timeout_ms": 1_000,
    "environment": None,
}
START: Any = {"op": "start", "key": ["do", "x", 1], "config": DO}
FINISH: Any = {"op": "finish", "key": ["do", "x", 1], "attempt": 1, "value": [1]}
ERROR: Any = {"type": "ValueError", "message": "no", "traceback": "", "data": {}}
FAILED: Any = {
    "op": "finish",
    "key": ["do", "x", 1],
    "attempt": 2,
    "error": ERROR,
    "retryable": True,
    "delay_ms": None,
}


def commands(*found: Any, value_bytes: int = 1_000) -> Any:
    return decode.commands(json.dumps(found), value_bytes=value_bytes)


def test_what_pipelines_say_is_understood() -> None:
    key = StepKey(StepKind.DO, "x")
    start, finish, failed, abandon, diverge = commands(
        START,
        FINISH,
        FAILED,
        {"op": "abandon", "key": ["do", "x", 1]},
        {"op": "diverge", "key": ["do", "x", 1], "change": "inserted"},
    )
    assert start == StartStep(key, DO)
    assert finish == FinishAttempt(key, 1, value=[1])
    assert isinstance(failed, FinishAttempt) and failed.error is not None
    assert (failed.error.type, failed.retryable, failed.delay_ms) == ("ValueError", True, None)
    assert (abandon, diverge) == (AbandonStep(key), NoteDivergence(key, "inserted"))


@pytest.mark.parametrize(
    ("kind", "name", "config"),
    [
        ("do", "x", DO),
        ("do", "x", {**DO, "retries": {**RETRIES, "delay_ms": None}}),
        ("sh", "x", SH),
        ("sleep", "x", {"duration_ms": 0}),
        ("sleep", "x", {"until_ms": 1}),
        ("wait", "x", {"type": "go", "timeout_ms": 1_000}),
        ("approval", "x", APPROVAL),
        ("run", "x", {"pipeline": "CI", "params": {"a": [1]}, "wait": True}),
        ("timer", "$timer", {"duration_ms": 30_000}),
    ],
)
def test_every_kind_of_step_has_its_config(kind: str, name: str, config: Any) -> None:
    (start,) = commands({"op": "start", "key": [kind, name, 1], "config": config})
    assert (start.key, start.config) == (StepKey(StepKind(kind), name), config)


@pytest.mark.parametrize(
    "found",
    [
        {"op": "start"},
        {"op": "launch", "key": ["do", "x", 1]},
        {**START, "extra": 1},
        {**START, "key": ["do", "x"]},
        {**START, "key": ["do", "", 1]},
        {**START, "key": ["do", "x" * 257, 1]},
        {**START, "key": ["do", "a\nb", 1]},
        {**START, "key": ["do", "\ud800", 1]},
        {**START, "key": ["do", "$x", 1]},
        {**START, "key": ["do", "x#2", 1]},
        {**START, "key": ["do", "x", 0]},
        {**START, "key": ["do", "x", True]},
        {**START, "key": ["do", "x", 1.0]},
        {**START, "key": ["do", 5, 1]},
        {**START, "key": ["magic", "x", 1]},
        {**START, "key": [["do"], "x", 1]},
        {**START, "key": ["timer", "x", 1], "config": {"duration_ms": 1}},
        {**START, "config": []},
        {**START, "config": {**DO, "timeout_ms": -1}},
        {**START, "config": {**DO, "timeout_ms": 10**30}},
        {**START, "config": {**DO, "timeout_ms": True}},
        {**START, "config": {**DO, "retries": {**RETRIES, "limit": 10_001}}},
        {**START, "config": {**DO, "retries": {**RETRIES, "backoff": ["linear"]}}},
        {**START, "config": {**DO, "retries": {}}},
        {**START, "config": {**DO, "sensitive": "no"}},
        *(
            {"op": "start", "key": ["sh", "x", 1], "config": {**SH, **bad}}
            for bad in (
                {"script": None},
                {"script": "a\0"},
                {"script": "x" * 300_000},
                {"env": {"A B": "1"}},
                {"env": {"A": 1}},
                {"env": {f"A{i}": "" for i in range(101)}},
                {"cwd": "/etc"},
                {"cwd": "a/../.."},
                {"shell": "fish"},
                {"artifacts": ["../x"]},
                {"artifacts": "dist"},
                {"secrets": [1]},
                {"network": ["x"] * 101},
                {"retries": {**RETRIES, "delay_ms": None}},
                {"cache": ["x"]},
                {"cache_dirs": ["x"]},
                {"on_lost": "ask"},
            )
        ),
        {"op": "start", "key": ["wait", "x", 1], "config": {"type": "a b", "timeout_ms": 1}},
        {"op": "start", "key": ["approval", "x", 1], "config": {**APPROVAL, "required": 0}},
        {"op": "start", "key": ["approval", "x", 1], "config": {**APPROVAL, "form": {"a": 1}}},
        {"op": "start", "key": ["sleep", "x", 1], "config": {"duration_ms": 1, "until_ms": 2}},
        {**FINISH, "key": ["approval", "x", 1]},
        {**FINISH, "key": ["sh", "x", 1]},
        {**FINISH, "attempt": 0},
        {**FINISH, "value": "x" * 2_000},
        {**FINISH, "value": ["\ud800"]},
        {**FAILED, "error": "no"},
        {**FAILED, "error": {**ERROR, "type": 3}},
        {**FAILED, "error": {**ERROR, "data": []}},
        {**FAILED, "retryable": 1},
        {**FAILED, "delay_ms": -1},
        {"op": "diverge", "key": ["do", "x", 1], "change": "invented"},
        [],
        None,
        "start",
    ],
)
def test_what_pipelines_never_say_is_refused(found: Any) -> None:
    with pytest.raises(BadMessage):
        commands(found)


@pytest.mark.parametrize(
    "text",
    ["", "junk", "{}", "[" * 100_000, "[NaN]", "[1e999]", "1" * 10_000, '["\\ud800"]', "[[]]"],
)
def test_what_is_no_list_of_commands_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        decode.commands(text, value_bytes=1_000)


def test_numbers_that_are_none_are_refused_inside_values_too() -> None:
    for number in ("NaN", "-Infinity", "1e999"):
        text = json.dumps([FINISH]).replace("[1]", number)
        with pytest.raises(BadMessage, match="a message is not JSON"):
            decode.commands(text, value_bytes=1_000)


def test_deep_values_are_refused_before_anything_recurses_into_them() -> None:
    deep = "[" * 150 + "]" * 150
    text = json.dumps([FINISH]).replace("[1]", deep)
    with pytest.raises(BadMessage, match="nested deeper than 100"):
        decode.commands(text, value_bytes=1_000)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        return found
    for name, inner in value:
        found += _places(inner, (*path, name))
    return found


@given(st.data())
def test_whatever_stands_in_a_message_it_is_understood_or_refused(data: st.DataObject) -> None:
    command = json.loads(json.dumps(data.draw(st.sampled_from([START, FINISH, FAILED]))))
    *path, last = data.draw(st.sampled_from([p for p in _places(command) if p]))
    holder = command
    for name in path:
        holder = holder[name]
    holder[last] = data.draw(JUNK)
    try:
        (found,) = commands(command)
    except BadMessage:
        found = None
    assert found is None or isinstance(found, (StartStep, FinishAttempt))


def test_errors_are_cut_to_size_rather_than_refused() -> None:
    found = decode.error({"type": "E" * 999, "message": "\0" + "x" * 10**6, "traceback": "\ud800"})
    assert (len(found.type), len(found.message)) == (256, decode.TEXT_MAX)
    assert found.traceback == "?"
    huge = decode.error({"type": "E", "message": "", "data": {"x": "y" * 10**6}})
    assert huge.data == {}


PIPELINE: Any = {
    "name": "CI",
    "triggers": [
        {
            "kind": "push",
            "branches": ["main"],
            "tags": [],
            "paths": [],
            "cron": None,
            "timezone": None,
            "inputs": {},
        }
    ],
    "resume": "pinned",
    "on_divergence": "accept",
    "concurrency": {"group": "{ref}", "limit": 1, "on_new": "queue"},
    "timeout_ms": None,
}


def test_a_description_is_read_into_values() -> None:
    (found,) = decode.description({"pipelines": [PIPELINE]}).pipelines
    assert (found.name, found.triggers[0].branches) == ("CI", ("main",))


@pytest.mark.parametrize(
    "found",
    [
        None,
        {},
        {"pipelines": []},
        {"pipelines": [PIPELINE] * 51},
        {"pipelines": [None]},
        {"pipelines": [{**PIPELINE, "name": "a b"}]},
        {"pipelines": [{**PIPELINE, "resume": "sometimes"}]},
        {"pipelines": [{**PIPELINE, "extra": 1}]},
        {"pipelines": [{**PIPELINE, "concurrency": {"group": 1}}]},
        {"pipelines": [{**PIPELINE, "timeout_ms": -1}]},
        {"pipelines": [{**PIPELINE, "triggers": [{}]}]},
        {"pipelines": [{**PIPELINE, "triggers": ["push"]}]},
        {"pipelines": [{**PIPELINE, "triggers": [{**PIPELINE["triggers"][0], "kind": "x"}]}]},
    ],
)
def test_a_description_that_is_none_is_refused(found: Any) -> None:
    with pytest.raises(BadMessage):
        decode.description(found)
