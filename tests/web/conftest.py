from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests here run on asyncio, as the server does."""
    return "asyncio"
