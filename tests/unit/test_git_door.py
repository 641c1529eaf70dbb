"""What a git client's credentials are taken for."""

from __future__ import annotations

import base64

import pytest

from ci_platform.git_door import basic_credentials


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (basic("me:secret"), ("me", "secret")),
        (basic("me:with:colons"), ("me", "with:colons")),
        (basic(":only"), ("", "only")),
        (basic("ünï:cödé"), ("ünï", "cödé")),
        (basic("me:secret").replace("Basic", "basic"), ("me", "secret")),
        (basic("no colon"), None),
        ("Bearer me:secret", None),
        ("Basic !!!", None),
        ("Basic " + base64.b64encode(b"\xff\xfe:x").decode(), None),
        ("Basic", None),
        ("", None),
        (None, None),
    ],
)
def test_credentials_are_read_whole_or_not_at_all(
    header: str | None, found: tuple[str, str] | None
) -> None:
    assert basic_credentials(header) == found
