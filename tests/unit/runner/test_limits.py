"""What a command hears when it goes over a limit."""

from __future__ import annotations

import pytest

from ci_platform.runner.execution import refusal
from ci_platform.runner.limits import (
    Excess,
    RunnerLimits,
    in_words,
    over_cpu,
    over_disk,
    over_files,
    over_memory,
    over_output,
    over_pids,
    over_time,
)
from ci_platform.shell import CommandSpec

LIMITS = RunnerLimits(memory_bytes=512 << 20, pids=64, cpu_seconds=60)


@pytest.mark.parametrize(
    ("excess", "limit", "words"),
    [
        (over_memory(600 << 20, LIMITS), "memory", "SLUICE_COMMAND_MEMORY_BYTES"),
        (over_disk(5 << 30, LIMITS), "disk", "SLUICE_COMMAND_DISK_BYTES"),
        (over_output(2 << 30, LIMITS), "output", "SLUICE_COMMAND_OUTPUT_BYTES"),
        (over_files(500_001, LIMITS), "files", "SLUICE_COMMAND_FILES"),
        (over_pids(70, LIMITS), "pids", "SLUICE_COMMAND_PIDS"),
        (over_cpu(61.2, LIMITS), "cpu", "SLUICE_COMMAND_CPU_SECONDS"),
        (over_time(1500), "timeout", "timeout="),
    ],
)
def test_every_excess_names_its_limit_and_its_setting(
    excess: Excess, limit: str, words: str
) -> None:
    assert excess.limit == limit
    assert words in excess.detail


def test_an_excess_says_what_was_used_and_what_is_allowed() -> None:
    assert over_memory(600 << 20, LIMITS).detail == (
        "The command used 600 MiB of memory; the limit is 512 MiB (SLUICE_COMMAND_MEMORY_BYTES)."
    )
    assert over_pids(70, LIMITS).detail == (
        "The command had 70 processes and threads; the limit is 64 (SLUICE_COMMAND_PIDS)."
    )


def test_sizes_are_in_the_unit_that_reads_best() -> None:
    assert [in_words(size) for size in (0, 1023, 1024, 1536 << 10, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 MiB",
        "3 GiB",
    ]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"shell": "fish"}, "shell 'fish' is not one of bash, sh"),
        ({"script": "x" * ((1 << 20) + 1)}, "script has 1048577 bytes"),
        ({"script": "a\0b"}, "script holds a null character"),
        ({"cwd": "/etc"}, "cwd '/etc'"),
        ({"cwd": "a/../../b"}, "cwd 'a/../../b'"),
        ({"timeout_ms": 0}, "timeout is not above zero"),
        ({"env": {"A B": "1"}}, "env: 'A B' is not a variable's name"),
        ({"env": {"A": "x\0"}}, "env: the value of A holds a null character"),
        ({"env": {f"V{i}": "" for i in range(1001)}}, "env has 1001 variables"),
        ({"env": {"A": "x" * (1 << 20)}}, "env has 1048577 bytes"),
        ({"base": ["0" * 64] * 10_001}, "base has 10001 layers"),
        ({"base": ["../../etc"]}, "base: '../../etc' is not a layer's digest"),
    ],
)
def test_a_command_that_no_runner_could_run_is_refused_with_the_field(
    change: dict[str, object], names: str
) -> None:
    plain: dict[str, object] = {
        "repository_id": "repo_1",
        "run_id": "run_1",
        "step": "sh:x",
        "commit": "0" * 40,
        "base": [],
        "script": "true",
    }
    found = refusal(CommandSpec(**{**plain, **change}))  # type: ignore[arg-type]
    assert found is not None
    assert found.limit == "invalid"
    assert names in found.detail
    assert refusal(CommandSpec(**plain)) is None  # type: ignore[arg-type]
