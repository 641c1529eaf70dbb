"""The server's own log lines."""

from __future__ import annotations

import json
import logging

from ci_platform.server.log import LineFormatter


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("part", logging.WARNING, __file__, 1, message, None, None)
    vars(made).update(extra)
    return made


def test_a_line_is_key_value_with_its_process_and_extras() -> None:
    line = LineFormatter("web", as_json=False).format(record("took long", run="run_1"))
    assert line.split(" ", 1)[1] == (
        'level=warning process=web logger=part message="took long" run=run_1'
    )


def test_a_line_break_in_a_message_stays_in_its_line() -> None:
    line = LineFormatter("web", as_json=False).format(record("a\nlevel=error b"))
    assert "\n" not in line
    assert 'message="a\\nlevel=error b"' in line


def test_json_lines_hold_the_same() -> None:
    made = json.loads(LineFormatter("worker-1", as_json=True).format(record("x", run="run_1")))
    assert made["process"] == "worker-1"
    assert made["run"] == "run_1"
    assert made["message"] == "x"


def test_an_exception_brings_its_traceback() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        made = record("failed", exc_info=(ValueError, error, error.__traceback__))
    assert "ValueError: no" in LineFormatter("web", as_json=False).format(made)
