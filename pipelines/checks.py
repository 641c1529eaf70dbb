"""Checks of single arguments: each raises TypeError or ValueError that names the argument.

Used where authors declare pipelines (declare.py) and call steps (step.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipelines.wire import NAME_MAX

TEXT_MAX = 1_024  # characters of a label or an option
PATTERN_MAX = 256  # characters of a branch, tag or path pattern
ENTRIES_MAX = 100  # in one list of texts

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def text(argument: str, value: str, *, most: int, empty: bool = False) -> str:
    """A line of text without control characters."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be text, got {type(value).__name__}")
    if not value and not empty:
        raise ValueError(f"{argument} must not be empty")
    if len(value) > most:
        raise ValueError(f"{argument} may have {most} characters, got {len(value)}")
    if _CONTROL.search(value):
        raise ValueError(f"{argument} must not have control characters, got {value!r}")
    if broken_unicode(value):
        raise ValueError(f"{argument} is not valid Unicode, got {value!r}")
    return value


def texts(argument: str, values: Sequence[str], *, most: int = PATTERN_MAX) -> tuple[str, ...]:
    """A list of texts; a bare text is a likely mistake and refused."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (list, tuple, set, frozenset)):
        raise TypeError(f"{argument} must be a list of texts, got {values!r}")
    if len(values) > ENTRIES_MAX:
        raise ValueError(f"{argument} may have {ENTRIES_MAX} entries, got {len(values)}")
    if isinstance(values, (set, frozenset)):
        values = sorted(values)
    return tuple(text(f"{argument}[{i}]", value, most=most) for i, value in enumerate(values))


def whole(argument: str, value: int, *, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be a whole number, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{argument} must be between {least} and {most}, got {value!r}")
    return value


def flag(argument: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {type(value).__name__}")
    return value


def one_of(argument: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}, got {value!r}")
    return value


_OCCURRENCE = re.compile(r"#[0-9]+\Z")


def step_name(value: str) -> str:
    """The name of a step: what people see, and with its kind and count the step's identity."""
    text("name", value, most=NAME_MAX)
    if value.startswith("$"):
        raise ValueError(f"name must not start with $, which marks the platform's own: {value!r}")
    if _OCCURRENCE.search(value):
        raise ValueError(f"name must not end in # and digits, which counts repeats: {value!r}")
    return value


_EVENT_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", re.ASCII)


def event_type(value: str) -> str:
    """The type of an event, by which waits are matched."""
    if not _EVENT_TYPE.fullmatch(text("type", value, most=100)):
        raise ValueError(
            f"type must be letters, digits, _ and -, not starting with -, got {value!r}"
        )
    return value


def text_map(argument: str, values: Mapping[str, str] | None, *, most: int) -> dict[str, str]:
    """A dict of texts, such as environment variables."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument} must be a dict of texts, got {type(values).__name__}")
    if len(values) > ENTRIES_MAX:
        raise ValueError(f"{argument} may have {ENTRIES_MAX} entries, got {len(values)}")
    found = {}
    for name, value in values.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ValueError(f"{argument} has a bad name {name!r}: use letters, digits and _")
        if not isinstance(value, str):
            raise TypeError(
                f"{argument}[{name!r}] must be text, got {type(value).__name__}: use str(…)"
            )
        found[name] = block(f"{argument}[{name!r}]", value, most=most)
    return found


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def block(argument: str, value: str, *, most: int) -> str:
    """Text of several lines: anything but NUL and broken Unicode."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be text, got {type(value).__name__}")
    if len(value) > most:
        raise ValueError(f"{argument} may have {most} characters, got {len(value)}")
    if "\0" in value:
        raise ValueError(f"{argument} must not have NUL characters")
    if broken_unicode(value):
        raise ValueError(f"{argument} is not valid Unicode")
    return value


def broken_unicode(value: str) -> bool:
    """Whether text has lone surrogates, which no encoding can carry."""
    if value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
