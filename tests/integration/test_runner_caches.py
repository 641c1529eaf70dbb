"""Cache directories of commands: restored by copy, kept by trusted code, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ci_platform.runner import RunnerLimits, SandboxRunner
from ci_platform.shell import CommandResult, CommandSpec
from tests.integration.runner_world import GivenTrees, objects_in

LIMITS = RunnerLimits(cache_bytes=1 << 20, disk_bytes=8 << 20)
DIRECTORIES = {"tool": "~/.cache/tool"}
Sh = Callable[..., CommandResult]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def sh(tmp_path: Path, notes: list[str]) -> Iterator[Sh]:
    runner = SandboxRunner(
        trees=GivenTrees(), objects=objects_in(tmp_path), work_dir=tmp_path / "w", limits=LIMITS
    )

    def run(
        script: str,
        cached: Mapping[str, str] | None = None,
        directories: Mapping[str, str] = DIRECTORIES,
        *,
        trusted: bool = True,
    ) -> CommandResult:
        spec = CommandSpec(
            "repo_1",
            "run_1",
            "sh:x",
            "c" * 40,
            (),
            script,
            cache_dirs=directories,
            cached=cached or {},
            trusted=trusted,
        )
        return runner.run(
            spec,
            output=lambda stream, data: notes.append(data.decode()) if stream == "note" else None,
            stop=lambda: False,
        )

    yield run
    runner.close()


def test_what_a_command_leaves_in_its_cache_is_there_for_the_next(sh: Sh) -> None:
    first = sh(
        "mkdir ~/.cache/tool/d; echo kept > ~/.cache/tool/d/file; chmod 600 ~/.cache/tool/d/*"
    )
    assert (first.exit_code, first.layer) == (0, None), "it is no part of the workspace"
    second = sh("cat ~/.cache/tool/d/file; touch ~/.cache/beside", first.caches)
    assert (second.output_tail, second.caches) == ("kept\n", first.caches)
    third = sh("echo more > ~/.cache/tool/more", first.caches)
    assert sh("cat ~/.cache/tool/d/file ~/.cache/tool/more", third.caches).exit_code == 0
    assert sh("test ! -e ~/.cache/tool/d").exit_code == 0, "nothing stays in the workspace"


def test_untrusted_code_and_failures_keep_nothing(sh: Sh) -> None:
    assert sh("echo x > ~/.cache/tool/x", trusted=False).caches == {}
    assert sh("echo x > ~/.cache/tool/x; false").caches == {}


def test_a_cache_that_cannot_be_read_is_empty_and_said_so(sh: Sh, notes: list[str]) -> None:
    assert sh('test -z "$(ls ~/.cache/tool)"', {"tool": "0" * 64}).exit_code == 0
    assert any("cache tool is empty" in note for note in notes)


def test_a_cache_that_is_too_large_is_not_kept_and_said_so(sh: Sh, notes: list[str]) -> None:
    done = sh("head -c 2000000 /dev/zero > ~/.cache/tool/big")
    assert (done.exit_code, done.caches) == (0, {})
    assert any("the limit is 1 MiB (SLUICE_COMMAND_CACHE_BYTES)" in note for note in notes)


def test_what_is_written_to_a_cache_counts_as_disk(sh: Sh) -> None:
    done = sh("head -c 20000000 /dev/zero > ~/.cache/tool/big; sleep 20")
    assert (done.exit_code, done.ended) == (None, "disk")


@pytest.mark.parametrize(
    "directories", [{"t": "/etc"}, {"t": "~/../x"}, {"t": "~"}, {"../t": "~/x"}, {"t": "~/a//b"}]
)
def test_only_directories_below_home_are_caches(sh: Sh, directories: dict[str, str]) -> None:
    done = sh("true", directories=directories)
    assert (done.exit_code, done.ended) == (None, "invalid")
