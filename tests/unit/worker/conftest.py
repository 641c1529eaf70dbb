"""At the end of each test of the worker, somebody must wake every run that has not ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.worker import world
from tests.wakers import check_nobody_is_forgotten


@pytest.fixture(autouse=True)
def nobody_is_forgotten() -> Iterator[None]:
    world.MADE.clear()
    yield
    for made in world.MADE:
        check_nobody_is_forgotten(made.store, made.clock.now_ms())
