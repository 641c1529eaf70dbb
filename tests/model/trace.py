"""Where the bodies of planned steps tell of what they do: the world of the test that runs.

The sandbox of these tests is this interpreter, so the author's code can import it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

DELAY = "5 s"  # of planned failures, until the next attempt
Teller = Callable[[str, str, int, Any], Any]


class _Nowhere:
    tell: Teller | None = None


def listen(tell: Teller) -> None:
    _Nowhere.tell = tell


def executed(run: str, key: str, attempt: int, known: Any, fails: int | None) -> Any:
    """A step has its effect: the world hears of it, and answers what it returns."""
    assert _Nowhere.tell is not None
    value = _Nowhere.tell(run, key, attempt, known)
    if fails is not None and attempt <= fails:
        raise RuntimeError(f"attempt {attempt} of {key} fails, as planned")
    return value


def script(key: str, known: Any, fails: int) -> str:
    """A command as the world of the test understands it."""
    return json.dumps({"fails": fails, "seen": known})
