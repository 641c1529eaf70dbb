"""Memoised commands: who may take whose result, and what is told of it."""

from __future__ import annotations

import pytest

from ci_platform.model import RunId
from ci_platform.testing import DummyRunner, succeeded
from ci_platform.worker import memory
from tests.unit.worker.world import World, pipeline

CACHED = """
made = await step.sh("build", "make", cache=Cache(key="KEY"))
return [made.from_run, made.layer]
"""
MAIN, BRANCH = "refs/heads/main", "refs/heads/b"


def world(*results: object) -> World:
    given = results or (succeeded("built", layer="l1"),)
    return World(runner=DummyRunner({"sh:build": list(given)}))  # type: ignore[arg-type]


def code(key: str = "") -> str:
    return pipeline(CACHED.replace("KEY", key))


def played(
    made: World, *, ref: str = MAIN, trusted: bool = True, key: str = "", commit: str = "c" * 40
) -> RunId:
    run_id = made.start(code(key), ref=ref, trusted=trusted, commit=commit)
    made.work()
    return run_id


def test_a_second_run_takes_the_result_and_its_log_without_executing() -> None:
    made = world()
    first, second = played(made), played(made)
    assert made.run(first).output == [None, "l1"]
    assert made.run(second).output == [1, "l1"]
    assert len(made.runner.ran) == 1
    assert made.log(second, "sh:build") == [
        "from run #1: nothing that this command depends on has changed",
        *made.log(first, "sh:build"),
    ]


def test_another_key_is_another_result() -> None:
    made = world()
    played(made)
    other = played(made, key="other", commit="d" * 40)
    assert made.run(other).output == [None, "l1"]


def test_the_default_branch_takes_nothing_from_another_one() -> None:
    made = world()
    played(made, ref=BRANCH)
    assert made.run(played(made)).output == [None, "l1"]
    assert made.run(played(made, ref=BRANCH)).output == [1, "l1"]
    assert made.run(played(made, ref="refs/heads/c")).output == [2, "l1"]


def test_untrusted_code_reads_results_and_leaves_none() -> None:
    made = world()
    assert made.run(played(made, trusted=False)).output == [None, "l1"]
    assert made.run(played(made)).output == [None, "l1"]
    assert made.run(played(made, trusted=False)).output == [2, "l1"]


def test_a_failure_is_not_kept() -> None:
    made = world(succeeded("no", exit_code=1), succeeded("yes", layer="l2"))
    assert made.run(played(made)).state == "failed"
    assert made.run(played(made)).output == [None, "l2"]
    assert made.run(played(made)).output == [2, "l2"]


def test_a_result_that_nobody_took_goes_with_its_run() -> None:
    made = world()
    first = played(made)
    made.store.runs.delete(first)
    assert made.run(played(made)).output == [None, "l1"]


def test_a_result_that_was_taken_outlives_the_run_that_made_it() -> None:
    made = world()
    first = played(made)
    log = made.log(first, "sh:build")
    second = played(made, ref=BRANCH)
    made.store.runs.delete(first)
    third = played(made)
    assert made.run(third).output == [1, "l1"]  # of the default branch's, not of the branch's
    made.store.runs.delete(second)
    note = "from run #1: nothing that this command depends on has changed"
    assert made.log(third, "sh:build") == [note, *log]
    assert made.run(played(made)).output == [1, "l1"]
    assert len(made.runner.ran) == 1


def test_untrusted_code_that_takes_a_result_does_not_keep_it() -> None:
    made = world()
    first = played(made)
    assert made.run(played(made, trusted=False)).output == [1, "l1"]
    made.store.runs.delete(first)
    assert made.run(played(made)).output == [None, "l1"]


def test_of_a_long_log_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOG_LINES_MAX", 3)
    made = world(succeeded("1\n2\n3\n4\n"))
    played(made)
    said = made.log(played(made), "sh:build")
    assert said[1:] == ["the first 1 lines are in run #1", "2", "3", "4"]
    assert made.log(played(made), "sh:build") == said  # and again, from there
