from __future__ import annotations

import pytest

from ci_platform.commands.places import GROUP_BYTES, place_of
from ci_platform.errors import InvalidRequest
from ci_platform.model import Json, PipelineDescription
from ci_platform.scheduling import OnNew, Place

COMMIT = "c" * 40


def place(
    group: str | None, *, ref: str = "refs/heads/main", priority: int = 0, on_new: str = "queue"
) -> Place:
    declared: Json = None if group is None else {"group": group, "limit": 2, "on_new": on_new}
    pipeline = PipelineDescription("CI", (), concurrency=declared)
    return place_of(pipeline, ref=ref, commit=COMMIT, event="push", actor="ann", priority=priority)


@pytest.mark.parametrize(
    ("template", "ref", "group"),
    [
        ("{ref}", "refs/heads/main", "refs/heads/main"),
        ("{branch}-{tag}", "refs/heads/a/b", "a/b-"),
        ("{branch}-{tag}", "refs/tags/v1", "-v1"),
        ("{pipeline}/{event}/{actor}", "refs/heads/main", "CI/push/ann"),
        ("{commit}", "refs/heads/main", COMMIT),
        ("deploy", "refs/heads/main", "deploy"),
        ("{{x}}", "refs/heads/main", "{x}"),
        # never checked on this side of the sandbox: harmless, whatever it is
        ("{nothing}", "refs/heads/main", "{nothing}"),
        ("{ref.__class__}", "refs/heads/main", "{ref.__class__}"),
        ("{ref", "refs/heads/main", "{ref"),
    ],
)
def test_a_group_is_filled_in_from_what_the_run_is(template: str, ref: str, group: str) -> None:
    assert place(template, ref=ref).group == group


def test_a_pipeline_without_a_group_runs_beside_any_other() -> None:
    assert place(None, priority=3) == Place(priority=3)


def test_limit_and_policy_are_the_pipelines() -> None:
    found = place("x", on_new="cancel_running")
    assert (found.limit, found.on_new) == (2, OnNew.CANCEL_RUNNING)


def test_a_long_group_is_cut_and_still_told_apart() -> None:
    one, other = (place("{ref}", ref=f"refs/heads/{'é' * 600}{end}").group for end in "ab")
    assert one is not None and other is not None and one != other
    assert len(one.encode()) <= GROUP_BYTES


@pytest.mark.parametrize("priority", [-1, 101])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    with pytest.raises(InvalidRequest, match="expected 0 to 100"):
        place(None, priority=priority)
