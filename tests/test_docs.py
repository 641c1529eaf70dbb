"""The guide says what the code does: settings, commands, and the README's own example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from ci_platform.config import PREFIX, Config

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
IN_WORDS = {"cache": "~/.cache/sluice", "workers": "one per core"}


def rows(page: str) -> dict[str, str]:
    """The first two cells of each row of a page's tables."""
    text = (GUIDE / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([^|]+)` \| ([^|]+?) \|", text, re.MULTILINE))


def default_of(name: str, field: FieldInfo) -> str:
    if name in IN_WORDS:
        return IN_WORDS[name]
    if field.default in (None, ""):
        return "none"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def test_every_setting_stands_in_the_guide_in_order() -> None:
    documented = list(rows("settings.md"))
    assert documented == [PREFIX + name.upper() for name in Config.model_fields]


@pytest.mark.parametrize("name", Config.model_fields)
def test_the_guide_gives_the_real_default(name: str) -> None:
    shown = rows("settings.md")[PREFIX + name.upper()].strip("`")
    assert shown == default_of(name, Config.model_fields[name])
