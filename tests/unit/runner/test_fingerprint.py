"""What makes two memoised commands the same one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.model import Json
from ci_platform.runner.fingerprint import fingerprint, overlay
from ci_platform.runner.globs import matcher
from ci_platform.runner.overlap import DIRECTORY, Listing
from ci_platform.shell import CommandSpec

CACHE: dict[str, Json] = {"inputs": ["src/**"], "key": "", "env": {}, "ref": "refs/heads/main"}
SPEC = CommandSpec("repo", "run", "sh:a", "c" * 40, (), "make", cache=CACHE)
FILES = {"src/a": "1", "README": "1"}
RUNNER = {"processor": "x"}


def same(spec: CommandSpec) -> bool:
    return fingerprint(spec, FILES, RUNNER) == fingerprint(SPEC, FILES, RUNNER)


@pytest.mark.parametrize(
    "change",
    [
        {"script": "make all"},
        {"shell": "bash"},
        {"cwd": "src"},
        {"secrets": ("KEY",)},
        {"network": ("pypi.org",)},
        {"labels": ("gpu",)},
        {"artifacts": ("dist/*",)},
        {"cache": {**CACHE, "key": "2"}},
        {"cache": {**CACHE, "env": {"A": "1"}}},
        {"cache": {**CACHE, "inputs": ["**"]}},
    ],
)
def test_what_the_command_is_counts(change: dict[str, Json]) -> None:
    assert not same(replace(SPEC, **change))


def test_what_differs_from_run_to_run_does_not_count() -> None:
    assert same(
        replace(
            SPEC,
            run_id="other",
            commit="d" * 40,
            env={"CI_RUN_ID": "other"},
            timeout_ms=1,
            cache={**CACHE, "ref": "refs/heads/b"},
            trusted=False,
        )
    )


def test_only_files_that_are_inputs_count_and_the_machine_does() -> None:
    known = fingerprint(SPEC, FILES, RUNNER)
    assert fingerprint(SPEC, {**FILES, "README": "2"}, RUNNER) == known
    assert fingerprint(SPEC, {**FILES, "src/a": "2"}, RUNNER) != known
    assert fingerprint(SPEC, {**FILES, "src/b": "1"}, RUNNER) != known
    assert fingerprint(SPEC, FILES, {"processor": "y"}) != known


def test_layers_lie_on_the_tree_in_order() -> None:
    layers = [
        Listing({"a": "2", "d": DIRECTORY, "d/x": "1", "e": "1"}, ["old"], []),
        Listing({"d": "link to e"}, ["e"], []),
    ]
    tree = {"a": "1", "b": "1", "old/one": "1", "e/below": "1"}
    assert overlay(tree, layers) == {"a": "2", "b": "1", "d": "link to e"}


@pytest.mark.parametrize(
    ("pattern", "path", "meant"),
    [
        ("**", "any/thing", True),
        (".", "any/thing", True),
        ("dist/*", "dist/a.whl", True),
        ("dist/*", "dist/sub/a.whl", True),  # dist/sub is meant, so all below it is
        ("dist/*.whl", "dist/sub/a.whl", False),
        ("*.py", "a.py", True),
        ("*.py", "d/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "d/e/a.py", True),
        ("src", "src/a", True),
        ("src/", "src/a", True),
        ("./src", "src/a", True),
        ("src", "src2/a", False),
        ("a?c", "abc", True),
        ("a[bc]d", "acd", True),
        ("a[!bc]d", "acd", False),
        ("a.b", "axb", False),
        ("(", "(", True),
        ("[", "[", True),
    ],
)
def test_patterns_mean_what_shells_mean(pattern: str, path: str, meant: bool) -> None:
    assert matcher([pattern])(path) is meant


def test_no_pattern_means_nothing() -> None:
    assert not matcher([])("a")
