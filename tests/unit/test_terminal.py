"""What reaches a person's terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ci_platform import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[2Jcleared", "cleared"),
        ("\x1b]0;my title\x07text", "text"),
        ("\x1b]52;c;ZXZpbA==\x1b\\text", "text"),
        ("\x1b]8;;http://evil\x1b\\link", "link"),
        ("\x1bcreset", "reset"),
        ("\x1b[6nreport", "report"),
        ("bell\x07", "bell"),
        ("10%\r50%\r100%", "100%"),
        ("ends\r", "ends"),
        ("cut \x1b[", "cut "),
        ("c1 \x9b2J", "c1 2J"),
    ],
)
def test_only_colours_of_a_pipeline_reach_the_terminal(text: str, shown: str) -> None:
    assert terminal.plain(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.004, "0.00 s"),
        (1.5, "1.50 s"),
        (12.4, "12 s"),
        (64, "1m 04s"),
        (7500, "2h 05m"),
        (273600, "3d 04h"),
    ],
)
def test_durations_read_like_words(seconds: float, shown: str) -> None:
    assert terminal.duration(seconds) == shown


def ticked(**step: object) -> str:
    out = io.StringIO()
    ticker = terminal.Ticker(Console(file=out, width=200, highlight=False, soft_wrap=True))
    base = {
        "kind": "sh",
        "name": "build",
        "occurrence": 1,
        "state": "passed",
        "attempts": 1,
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:02.500Z",
    }
    ticker.step_ended(base | step)
    return out.getvalue()


def test_a_step_that_ends_says_how_and_how_long_it_took() -> None:
    assert "build │ ✓ passed in 2.50 s\n" in ticked()


def test_a_second_attempt_is_named() -> None:
    assert "in 2.50 s, attempt 2\n" in ticked(attempts=2)


def test_a_failed_step_shows_its_error_without_control_sequences() -> None:
    error = {"type": "Boom", "message": "\x1b[2Jno", "traceback": ""}
    text = ticked(state="failed", error=error)
    assert "✗ failed" in text
    assert "Boom: no" in text
    assert "\x1b[2J" not in text


def test_markup_in_output_is_not_interpreted() -> None:
    out = io.StringIO()
    ticker = terminal.Ticker(Console(file=out, width=200, highlight=False, soft_wrap=True))
    ticker.lines("say", [{"number": 1, "stream": "stdout", "text": "[bold]x[/bold] [red"}])
    assert "say │ [bold]x[/bold] [red" in out.getvalue()
