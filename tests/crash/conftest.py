"""What the crash tests draw by lot, so that a failure can be had again."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str]) -> int:
    """Of this test's random choices; TEST_SEED sets it. Shown with a failure."""
    chosen = int(os.environ.get("TEST_SEED") or random.randrange(1 << 32))
    print(f"TEST_SEED={chosen}")
    return chosen
