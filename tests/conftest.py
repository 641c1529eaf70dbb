"""What all tests share: the sandbox guest, built once and kept between test runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci_platform.config import Config


@pytest.fixture(scope="session")
def guest_cache() -> Path:
    """Where the built guest lies. The first test that starts a sandbox builds it."""
    return Config().cache
