"""What reaches a person's terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ci_platform.cli import terminal


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


def test_a_shared_step_is_not_told_as_started_here() -> None:
    out = io.StringIO()
    ticker = terminal.Ticker(Console(file=out, width=120))
    step = {"kind": "sh", "name": "build", "occurrence": 1, "origin": {"id": "r", "number": 7}}
    ticker.step_began(step)
    ticker.step_began({**step, "name": "ship", "origin": None})
    assert [line.split("│ ")[1] for line in out.getvalue().splitlines()] == [
        "shared with run #7",
        "started",
    ]


def test_a_list_says_why_a_queued_run_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"number": 2, "state": "queued", "reason": None, "pipeline": "CI", "commit": "c" * 40}
    run |= {"ref": "refs/heads/main", "started_at": None, "ended_at": None, "id": "run_2"}
    waits = [[{"kind": "group", "name": "main"}], [{"kind": "limit", "name": "x"}], []]
    terminal.print_runs([{**run, "waits": each} for each in waits], empty="")
    said = capsys.readouterr().out
    assert "queued (waits for group main)" in said
    assert "queued (at a limit)" in said


def test_an_entry_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"seq": 3, "at": "now", "kind": "step_passed", "data": {"value": "a\n\x1b[2J" * 500}}
    entry["key"] = {"kind": "sh", "name": "build", "occurrence": 2}
    terminal.print_entry(entry, as_json=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("3 now step_passed sh:build#2 {") and line.endswith("…")
    terminal.print_entry(entry, as_json=True)
    assert json.loads(capsys.readouterr().out) == entry
