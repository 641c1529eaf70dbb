from __future__ import annotations

import pytest

from ci_platform.model import StepKey, StepKind
from web.filters import (
    LINE_CHARS_MAX,
    ago,
    ansi,
    compact,
    duration,
    iso,
    period,
    relative,
    step_path,
)

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (-5, "0 ms"),
        (840, "840 ms"),
        (1_000, "1.0s"),
        (9_949, "9.9s"),
        (42_000, "42s"),
        (64_000, "1m 04s"),
        (HOUR, "1h 00m"),
        (3 * DAY + 2 * HOUR, "3d 02h"),
    ],
)
def test_durations_have_at_most_two_units(ms: int | None, text: str) -> None:
    assert duration(ms) == text


def test_how_often_something_comes_back_is_said_exactly() -> None:
    minute_ms = 60_000
    said = [period(minutes * minute_ms) for minutes in (1, 10, 60, 90, 120, 1440, 20_160)]
    assert said == ["minute", "10 minutes", "hour", "90 minutes", "2 hours", "day", "14 days"]
    assert period(1_500) == "1.5 seconds"


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (0, "just now"),
        (-30 * SECOND, "30 seconds ago"),
        (-MINUTE, "1 minute ago"),
        (-47 * HOUR, "47 hours ago"),
        (-48 * HOUR, "2 days ago"),
        (-70 * DAY, "2 months ago"),
        (-800 * DAY, "2 years ago"),
        (7 * DAY - 2 * SECOND, "in 7 days"),
        (90 * SECOND, "in 2 minutes"),
    ],
)
def test_instants_are_said_relative_to_now(distance: int, text: str) -> None:
    now_ms = 1_795_000_000_000
    assert relative(now_ms + distance, now_ms) == text


def test_a_time_is_exact_to_machines_and_absolute_in_its_title() -> None:
    html = ago(1_795_000_000_123, 1_795_000_060_123)
    assert 'datetime="2026-11-18T11:06:40.123Z"' in html
    assert 'title="2026-11-18 11:06:40 UTC"' in html
    assert html.endswith(">1 minute ago</time>")
    assert iso(0) == "1970-01-01T00:00:00.000Z"


def test_a_step_in_an_address_is_one_segment() -> None:
    assert step_path(StepKey(StepKind.SH, "a/../b", 2)) == "sh:a%2F..%2Fb%232"


def test_long_json_is_cut() -> None:
    assert compact({"a": "x" * 500}).endswith("…")
    assert len(compact({"a": "x" * 500})) == 120


# --- ANSI -----------------------------------------------------------------------------------------


def test_markup_in_a_log_line_is_text() -> None:
    assert ansi("<b>&\"'</b>") == "&lt;b&gt;&amp;&#34;&#39;&lt;/b&gt;"
    assert "<script" not in ansi("\x1b[31m<script>alert(1)</script>")


def test_escapes_between_markup_do_not_join_it_again() -> None:
    assert ansi("<\x1b[0mscript>") == "&lt;script&gt;"
    assert ansi("&\x1b[31mlt;") == '&amp;<span class="fg1">lt;</span>'


def test_colours_become_classes() -> None:
    assert ansi("\x1b[31mred\x1b[0m plain") == '<span class="fg1">red</span> plain'
    assert ansi("\x1b[1;92;44mall") == '<span class="bold fg10 bg4">all</span>'
    assert ansi("\x1b[1mb\x1b[22mn") == '<span class="bold">b</span>n'
    assert ansi("\x1b[31ma\x1b[39mb") == '<span class="fg1">a</span>b'
    assert ansi("\x1b[mplain") == "plain"


def test_256_and_true_colours_become_the_nearest_of_sixteen() -> None:
    assert ansi("\x1b[38;5;196mx") == '<span class="fg1">x</span>'
    assert ansi("\x1b[38;5;11mx") == '<span class="fg11">x</span>'
    assert ansi("\x1b[48;2;0;0;160mx") == '<span class="bg4">x</span>'
    assert ansi("\x1b[38:2:0:160:0mx") == '<span class="fg2">x</span>'
    assert ansi("\x1b[38;5;255;1mx") == '<span class="fg15 bold">x</span>'


def test_broken_and_foreign_escapes_vanish() -> None:
    for text in (
        "\x1b[2Kdone",
        "\x1b]0;title\x07done",
        "\x1b]8;;http://evil.example\x1b\\done",
        "\x1b(Bdone",
        "\x1b[?25ldone",
        "done\x1b[38;5",
        "done\x1b",
        "\x00do\x07ne\x7f",
        "\x1b[999999999999mdone",
    ):
        assert ansi(text) == "done", repr(text)


def test_a_carriage_return_rewrites_the_line() -> None:
    assert ansi("10 %\r50 %\r100 %") == "100 %"
    assert ansi("windows line\r") == "windows line"


def test_marks_that_reorder_text_are_shown() -> None:
    assert ansi("a\u202eb") == "a&lt;U+202E&gt;b"


def test_a_very_long_line_is_cut_and_says_so() -> None:
    html = ansi("x" * (LINE_CHARS_MAX + 1))
    assert html.count("x") < LINE_CHARS_MAX + 10
    assert "line cut" in html


def test_many_escapes_take_no_more_than_linear_time() -> None:
    assert len(ansi("\x1b[31m\x1b[0m" * 2_000)) == 0
    assert ansi("\x1b[" + "1;" * 9_000) == ""
