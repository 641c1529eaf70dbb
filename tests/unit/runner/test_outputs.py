"""What a command may write to $CI_OUTPUT."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.runner.limits import RunnerLimits
from ci_platform.runner.outputs import BadOutputs, parse

LIMITS = RunnerLimits()


def test_lines_of_name_and_value_are_read() -> None:
    assert parse(b"version=1.2\nurl=http://x/?a=b\n", LIMITS) == {
        "version": "1.2",
        "url": "http://x/?a=b",
    }


def test_a_heredoc_keeps_its_lines_and_may_hold_equal_signs() -> None:
    content = b"notes<<END\none=1\n\ntwo<<2\nEND\nafter=yes\n"
    assert parse(content, LIMITS) == {"notes": "one=1\n\ntwo<<2", "after": "yes"}


def test_an_equal_sign_before_the_arrows_makes_it_a_plain_value() -> None:
    assert parse(b"shift=1<<3\n", LIMITS) == {"shift": "1<<3"}


def test_the_last_value_of_a_name_counts_and_a_missing_line_end_does_no_harm() -> None:
    assert parse(b"a=1\r\na=2", LIMITS) == {"a": "2"}


def test_an_empty_file_and_empty_values_are_fine() -> None:
    assert parse(b"", LIMITS) == {}
    assert parse(b"\n\na=\n", LIMITS) == {"a": ""}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no assignment\n", "line 1: expected NAME=value"),
        (b"ok=1\n2bad=1\n", "line 2: '2bad' is not a name"),
        (b"=1\n", "line 1: '' is not a name"),
        (b"a<<END\nvalue\n", "line 1: the end marker 'END' is missing"),
        (b"a<<\nvalue\n", "no end marker after a<<"),
        (b"a=\xff\n", "not UTF-8 (byte 3)"),
        (b"a=\0\n", "null character"),
        (b"x" * 101 + b"=1\n", "is not a name"),
    ],
)
def test_anything_else_is_refused_with_its_line(content: bytes, says: str) -> None:
    with pytest.raises(BadOutputs) as caught:
        parse(content, LIMITS)
    assert says in str(caught.value)


def test_too_many_names_and_too_many_bytes_are_refused() -> None:
    limits = replace(LIMITS, outputs=2, outputs_bytes=20)
    with pytest.raises(BadOutputs, match="more than 2 names"):
        parse(b"a=1\nb=1\nc=1\n", limits)
    with pytest.raises(BadOutputs, match="larger than 20 B"):
        parse(b"a=" + b"1" * 30, limits)
