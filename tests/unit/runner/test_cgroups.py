"""Control groups, on directories that look like them: no machine of ours delegates real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci_platform.runner.cgroups import Cgroup, find, shares_processor
from ci_platform.runner.limits import RunnerLimits

LIMITS = RunnerLimits(memory_bytes=1000, pids=10, cpu_seconds=5)


def group(directory: Path, *, controllers: str = "cpu memory pids") -> Path:
    made = directory / "system.slice/sluice.service"
    (made / "server").mkdir(parents=True)
    (made / "cgroup.controllers").write_text(controllers)
    (made / "cgroup.procs").write_text("")
    return made


def yes(group: Path) -> bool:
    return True


def own(directory: Path, line: str) -> Path:
    (directory / "own").write_text(f"9:cpu:/\n{line}\n")
    return directory / "own"


LINES = ("0::/system.slice/sluice.service", "0::/system.slice/sluice.service/server")


@pytest.mark.parametrize("line", LINES)
def test_a_delegated_group_is_found_and_prepared(tmp_path: Path, line: str) -> None:
    made = group(tmp_path)
    assert find(mount=tmp_path, own=own(tmp_path, line), delegated=yes) == made
    assert (made / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_a_group_without_the_processor_is_of_use_all_the_same(tmp_path: Path) -> None:
    made = group(tmp_path, controllers="memory pids")
    assert find(mount=tmp_path, own=own(tmp_path, LINES[0]), delegated=yes) == made
    assert (made / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_commands_share_processor_and_disk_by_weight_where_both_are_delegated(
    tmp_path: Path,
) -> None:
    made = group(tmp_path, controllers="cpu io memory pids")
    assert find(mount=tmp_path, own=own(tmp_path, LINES[0]), delegated=yes) == made
    assert (made / "cgroup.subtree_control").read_text() == "+cpu +io +memory +pids"
    (made / "cgroup.subtree_control").write_text("cpu io memory pids\n")  # as the kernel has it
    assert shares_processor(made)
    (made / "cgroup.subtree_control").write_text("memory pids\n")
    assert not shares_processor(made)


def test_a_group_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    made = group(tmp_path)
    nobody_s = own(tmp_path, LINES[0])
    assert find(mount=tmp_path, own=nobody_s, delegated=lambda path: False) is None
    assert not (made / "cgroup.subtree_control").exists()


def test_a_group_without_the_controllers_is_of_no_use(tmp_path: Path) -> None:
    group(tmp_path, controllers="cpu pids")
    assert find(mount=tmp_path, own=own(tmp_path, LINES[0]), delegated=yes) is None


def test_version_one_is_of_no_use(tmp_path: Path) -> None:
    assert find(mount=tmp_path, own=own(tmp_path, "8:memory:/x"), delegated=yes) is None


def test_a_command_gets_its_limits_and_its_process(tmp_path: Path) -> None:
    cgroup = Cgroup(tmp_path, "job-1", LIMITS)
    cgroup.add(4711)
    said = {path.name: path.read_text() for path in (tmp_path / "job-1").iterdir()}
    assert said == {
        "memory.max": "1000",
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "pids.max": "11",
        "cpu.weight": "20",
        "io.weight": "20",
        "cgroup.procs": "4711",
    }


@pytest.mark.parametrize(
    ("name", "content", "limit"),
    [
        ("memory.events", "low 0\noom 2\noom_kill 1\n", "memory"),
        ("pids.events", "max 3\n", "pids"),
        ("cpu.stat", "usage_usec 5000001\nuser_usec 1\n", "cpu"),
    ],
)
def test_what_the_kernel_enforced_is_told(
    tmp_path: Path, name: str, content: str, limit: str
) -> None:
    cgroup = Cgroup(tmp_path, "job-1", LIMITS)
    assert cgroup.excess() is None
    (tmp_path / "job-1" / name).write_text(content)
    found = cgroup.excess()
    assert found is not None
    assert found.limit == limit
