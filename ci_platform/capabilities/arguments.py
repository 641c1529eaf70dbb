"""Reads the arguments of a question, which an author's code may have written itself."""

from __future__ import annotations

from collections.abc import Mapping

from ci_platform.errors import InvalidRequest, NotGranted, TooLarge
from ci_platform.model import Json


def text(arguments: Mapping[str, Json], name: str, *, most: int, empty: bool = False) -> str:
    """An argument that is text of so many bytes at most."""
    found = arguments.get(name)
    if not isinstance(found, str) or "\0" in found or not (found or empty):
        raise InvalidRequest(f"{name} must be text, not empty and without NUL", field=name)
    size = len(found.encode())
    if size > most:
        raise TooLarge(f"{name} has {size:,} bytes; the limit is {most:,}", field=name)
    return found


def count(arguments: Mapping[str, Json], name: str, *, most: int) -> int:
    found = arguments.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= most:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most:,}", field=name)
    return found


def only(arguments: Mapping[str, Json], *names: str) -> None:
    """Refuse arguments that nobody reads."""
    odd = sorted(set(arguments) - set(names))
    if odd:
        raise InvalidRequest(f"there is no argument {odd[0][:40]!r}", field=odd[0][:40])


def no_method(capability: str, method: str) -> NotGranted:
    return NotGranted(f"self.env.{capability} has no {method!r}")
