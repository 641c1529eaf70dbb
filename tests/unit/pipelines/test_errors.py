"""Exceptions as data, and back."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import (
    MESSAGE_MAX,
    TRACEBACK_MAX,
    CommandFailed,
    NonRetryable,
    Rejected,
    StepFailed,
    WaitTimeout,
    clean,
    describe,
    revive,
)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_what_the_platform_raises_comes_back_with_its_data() -> None:
    command = revive(
        {
            "type": "CommandFailed",
            "message": "x exited with 3",
            "data": {"exit_code": 3, "output_tail": "tail", "ended": None},
        },
        "sh:x",
    )
    assert isinstance(command, CommandFailed)
    assert (command.exit_code, command.output_tail) == (3, "tail")
    rejected = revive({"type": "Rejected", "message": "no", "data": {"user": "ann"}}, "approval:x")
    assert isinstance(rejected, Rejected) and rejected.user == "ann"
    assert isinstance(revive({"type": "WaitTimeout", "message": "late"}, "wait:x"), WaitTimeout)
    failed = revive({"type": "StepFailed", "message": "m", "data": {"type": "Boom"}}, "do:x")
    assert isinstance(failed, StepFailed) and failed.type == "Boom"
    assert all(isinstance(each, StepFailed) for each in (command, rejected, failed))


def test_a_class_that_this_code_does_not_have_becomes_step_failed() -> None:
    found = revive({"type": "Gone", "message": "m", "data": {"class": "helpers:Gone"}}, "do:x")
    assert isinstance(found, StepFailed)
    assert (found.type, found.message) == ("Gone", "m")


@pytest.mark.parametrize("name", ["exit", "print", "__import__", "BaseException", "SystemExit"])
def test_a_name_that_is_no_exception_of_python_becomes_step_failed(name: str) -> None:
    assert type(revive({"type": name, "message": "m"}, "do:x")) is StepFailed


def test_a_class_path_cannot_name_anything_but_an_exception() -> None:
    for path in ("os:system", "builtins:print", "nowhere:X", ":", "builtins:SystemExit"):
        found = revive({"type": "X", "message": "m", "data": {"class": path}}, "do:x")
        assert type(found) is StepFailed


def test_a_broken_exception_class_is_described_all_the_same() -> None:
    described = describe(Unprintable())
    assert described["message"] == "<its __str__ raised RuntimeError>"
    assert "Unprintable" in described["traceback"]


def test_texts_are_cut_to_their_limits_and_cleaned() -> None:
    described = describe(ValueError("\ud800\0" + "x" * 1_000_000))
    assert len(described["message"]) == MESSAGE_MAX
    assert len(described["traceback"]) <= TRACEBACK_MAX + 2
    described["message"].encode()
    assert "\0" not in described["message"]


def test_deep_recursion_is_described_within_the_limit() -> None:
    def deeper() -> Any:
        return deeper()

    with pytest.raises(RecursionError) as caught:
        deeper()
    assert len(describe(caught.value)["traceback"]) <= TRACEBACK_MAX + 2


def test_what_cannot_be_retried_keeps_its_type() -> None:
    found = revive(describe(NonRetryable("stop")), "do:x")
    assert isinstance(found, NonRetryable) and str(found) == "stop"


def test_clean_leaves_good_text_alone() -> None:
    assert clean("fine – ✓ 🎉\n") == "fine – ✓ 🎉\n"
    assert clean("a\ud83d") == "a?"
