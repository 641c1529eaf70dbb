from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.web.chromium import launched
from tests.web.stage import Stage


@pytest.fixture
def bare_stage(tmp_path: Path) -> Iterator[Stage]:
    """A deployment on which nobody has signed in yet; see stage.py."""
    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.fixture
def stage(bare_stage: Stage) -> Stage:
    """A deployment with a repository and people."""
    bare_stage.settle_in()
    return bare_stage


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests here run on asyncio, as the server does."""
    return "asyncio"
