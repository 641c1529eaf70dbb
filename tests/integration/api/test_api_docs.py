"""The page about the API lists its routes, all of them and no others."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration.api.front import Front

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "api.md"
ROW = re.compile(r"^\| `([A-Z]+) (/[^`]*)` \|", re.MULTILINE)


def test_the_page_about_the_api_lists_every_route(front: Front) -> None:
    listed = set(ROW.findall(PAGE.read_text(encoding="utf-8")))
    paths = front.usual_app.openapi()["paths"]
    served = {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, operations in paths.items()
        for method in operations
        if path.startswith("/api/v1")
    }
    assert listed == served
