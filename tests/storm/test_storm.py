"""A short storm of a fixed seed. Longer ones: `python -m tests.storm --minutes 10`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.storm import storm

SEED = 20
SECONDS = 12


@pytest.mark.slow
def test_whatever_is_killed_every_run_ends_as_its_plan_foretells(
    deployment_url: str | None, tmp_path: Path, guest_cache: Path
) -> None:
    outcome = storm(
        tmp_path, seed=SEED, seconds=SECONDS, cache=guest_cache, database_url=deployment_url
    )
    assert not outcome.faults, f"seed {SEED}: {outcome.faults[0]}"
    assert outcome.killed["worker"] and outcome.killed["sandbox"] and outcome.ended["passed"]
