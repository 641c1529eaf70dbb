"""Reading the $CI_OUTPUT file of a command: `NAME=value` lines and heredocs.

A value of several lines is written as `NAME<<END`, its lines, and `END`. Pure; the caller reads
the file, and decides what a bad one means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ci_platform.runner.limits import RunnerLimits, in_words

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")


class BadOutputs(ValueError):
    """The file is not what a command may write; the message says why."""


def parse(content: bytes, limits: RunnerLimits) -> Mapping[str, str]:
    """Read names and values; the last value of a name counts. Raises BadOutputs."""
    if len(content) > limits.outputs_bytes:
        raise BadOutputs(f"it is larger than {in_words(limits.outputs_bytes)}")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadOutputs(f"it is not UTF-8 (byte {error.start + 1})") from error
    values: dict[str, str] = {}
    lines = iter(enumerate(text.split("\n"), 1))
    for number, raw in lines:
        line = raw.removesuffix("\r")
        if not line.strip():
            continue
        name, value = _assignment(number, line, lines)
        if "\0" in value:
            raise BadOutputs(f"line {number}: the value of {name} holds a null character")
        values[name] = value
        if len(values) > limits.outputs:
            raise BadOutputs(f"it has more than {limits.outputs} names")
    return values


def _assignment(number: int, line: str, lines: Iterator[tuple[int, str]]) -> tuple[str, str]:
    """The name and value that begin at this line; takes the lines of a heredoc from `lines`."""
    equals, heredoc = line.find("="), line.find("<<")
    if heredoc != -1 and (equals == -1 or heredoc < equals):
        name, end = line[:heredoc], line[heredoc + 2 :].strip()
        _check_name(number, name)
        if not end:
            raise BadOutputs(f"line {number}: there is no end marker after {name}<<")
        return name, _until(number, end, lines)
    if equals == -1:
        raise BadOutputs(f"line {number}: expected NAME=value or NAME<<END")
    _check_name(number, line[:equals])
    return line[:equals], line[equals + 1 :]


def _until(number: int, end: str, lines: Iterator[tuple[int, str]]) -> str:
    taken: list[str] = []
    for _, raw in lines:
        line = raw.removesuffix("\r")
        if line == end:
            return "\n".join(taken)
        taken.append(line)
    raise BadOutputs(f"line {number}: the end marker {end!r} is missing")


def _check_name(number: int, name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise BadOutputs(
            f"line {number}: {name[:100]!r} is not a name (letters, digits, '_', '.', '-', at "
            "most 100, not beginning with a digit)"
        )
