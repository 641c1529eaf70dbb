from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_platform.commands.triggers import glob, matches, matching_trigger, skip_reason
from ci_platform.model import PipelineDescription, Trigger


def fires(trigger: Trigger, ref: str, changed: Sequence[str] = ()) -> bool:
    pipeline = PipelineDescription(name="CI", triggers=(trigger,))
    return matching_trigger(pipeline, ref, lambda: changed) is not None


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("main", "main", True),
        ("main", "maint", False),
        ("release/*", "release/1.0", True),
        ("release/*", "release/1.0/hotfix", False),
        ("release/**", "release/1.0/hotfix", True),
        ("release/**", "release", False),
        ("**", "a/b/c", True),
        ("*", "a/b", False),
        ("", "", True),
        ("**/test_*.py", "test_a.py", True),
        ("**/test_*.py", "a/b/test_a.py", True),
        ("**/test_*.py", "a/b/tests.py", False),
        ("src/**/*.py", "src/a.py", True),
        ("src/**/*.py", "src/a/b/c.py", True),
        ("src/**/*.py", "src.py", False),
        ("a**b", "a/x/b", True),
        ("v?.?", "v1.2", True),
        ("v?.?", "v1/2", False),
        ("v?", "v/", False),
        ("a.b", "axb", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("ü*", "über", True),
    ],
)
def test_globs_stay_within_a_segment_unless_doubled(pattern: str, text: str, fits: bool) -> None:
    assert glob(pattern).fits(text) is fits


def test_the_last_pattern_that_fits_decides() -> None:
    patterns = ["release/**", "!release/*-rc", "release/9-rc"]
    assert matches(patterns, "release/1")
    assert not matches(patterns, "release/1-rc")
    assert matches(patterns, "release/9-rc")
    assert not matches(patterns, "main")


def test_a_list_of_negations_begins_from_everything() -> None:
    assert matches(["!wip/**"], "main")
    assert not matches(["!wip/**"], "wip/a")


def test_a_push_trigger_without_filters_takes_every_branch_and_no_tag() -> None:
    assert fires(Trigger("push"), "refs/heads/a/b")
    assert not fires(Trigger("push"), "refs/tags/v1")


def test_a_tag_trigger_takes_tags_only() -> None:
    assert fires(Trigger("tag", tags=("v*",)), "refs/tags/v1")
    assert not fires(Trigger("tag", tags=("v*",)), "refs/tags/x")
    assert not fires(Trigger("tag"), "refs/heads/v1")


@pytest.mark.parametrize("kind", ["manual", "schedule", "pull_request"])
def test_other_triggers_are_not_about_pushes(kind: str) -> None:
    assert not fires(Trigger(kind), "refs/heads/main")


def test_path_filters_look_at_changed_files() -> None:
    trigger = Trigger("push", paths=("src/**", "!src/docs/**"))
    assert fires(trigger, "refs/heads/main", ["README", "src/a.py"])
    assert not fires(trigger, "refs/heads/main", ["README", "src/docs/a.md"])
    assert not fires(trigger, "refs/heads/main", [])


def test_changed_files_are_not_asked_for_without_a_path_filter() -> None:
    def changed() -> Sequence[str]:
        raise AssertionError("asked")

    pipeline = PipelineDescription("CI", (Trigger("push"),))
    assert matching_trigger(pipeline, "refs/heads/main", changed) is not None


def test_a_hostile_pattern_costs_no_more_than_its_length_times_the_text() -> None:
    pattern = "**a" * 60 + "!"
    began = time.perf_counter()
    assert not glob(pattern).fits("a" * 4000)
    assert time.perf_counter() - began < 2


def test_a_pattern_over_its_limit_fits_nothing() -> None:
    assert not glob("a" * 257).fits("a" * 257)
    assert not glob("*" * 257).fits("")


@given(st.text(alphabet="ab/*?", max_size=12), st.text(alphabet="ab/", max_size=12))
def test_doubling_every_star_never_fits_less(pattern: str, text: str) -> None:
    if glob(pattern).fits(text):
        assert glob(pattern.replace("*", "**")).fits(text)


@pytest.mark.parametrize(
    "message",
    [
        "fix [skip ci]",
        "fix [ci skip]",
        "[Skip CI] fix",
        "fix [ skip-ci ]",
        "fix [no ci]",
        "fix [skip actions]",
        "fix [actions skip]",
        "fix\n\nlonger [skip  ci]",
        "fix\n\nskip-checks: true\n",
        "fix\n\nSkip-Checks:true",
    ],
)
def test_a_message_can_ask_to_be_skipped(message: str) -> None:
    assert skip_reason(message, ()) is not None


@pytest.mark.parametrize(
    "message", ["fix skip ci", "skip [ci]", "skip-checks: true", "skip-checks: true\n\nfix", ""]
)
def test_other_messages_do_not(message: str) -> None:
    assert skip_reason(message, ()) is None


def test_the_push_option_skips() -> None:
    assert skip_reason("fix", ["ci.skip"]) is not None
    assert skip_reason("fix", ["ci.variable=1"]) is None


def test_a_huge_message_is_looked_at_quickly() -> None:
    began = time.perf_counter()
    assert skip_reason("[ " * 5_000_000, ()) is None
    assert time.perf_counter() - began < 1
