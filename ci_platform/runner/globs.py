"""Patterns of paths in a workspace: `dist/*.whl`, `src/**`, `**/junit.xml`, `docs`.

`*` and `?` stay within one name, `**` crosses directories. A pattern that matches a directory
means everything below it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|.", re.DOTALL)
_MEANING = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path is meant by any of the patterns."""
    if not patterns:
        return lambda path: False
    found = re.compile("|".join(f"(?:{_translated(one)})" for one in patterns))
    return lambda path: found.fullmatch(path) is not None


def _translated(pattern: str) -> str:
    text = pattern.removeprefix("./").rstrip("/")
    if text in ("", "."):
        return ".*"
    return "".join(_part(token) for token in _TOKEN.findall(text)) + "(?:/.*)?"


def _part(token: str) -> str:
    if token in _MEANING:
        return _MEANING[token]
    if len(token) > 1:  # a set of characters
        body = token[1:-1].replace("\\", r"\\").replace("[", r"\[")
        return f"[^/{body[1:]}]" if body.startswith("!") else f"[{body}]"
    return re.escape(token)
