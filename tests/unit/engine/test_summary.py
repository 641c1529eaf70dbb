"""What people see of a run: its steps and entries, without what is not theirs to see."""

from __future__ import annotations

from ci_platform.engine import REDACTED, shown, steps
from ci_platform.model import ErrorInfo, FinishAttempt
from tests.unit.engine.journal import Journal, do, passed, start_do


def test_what_a_sensitive_step_returned_is_kept_for_the_code_and_shown_to_nobody() -> None:
    journal = Journal().claim()
    journal.ask(start_do("login", sensitive=True), start_do("build"))
    entries = journal.ask(passed("login", {"token": "hush"}), passed("build", "open"))
    assert [entry.data["value"] for entry in entries] == [{"token": "hush"}, "open"]
    assert [shown(entry).data["value"] for entry in entries] == [REDACTED, "open"]
    assert [step.value for step in steps(journal.view)] == [REDACTED, "open"]
    assert "hush" not in repr([shown(entry) for entry in journal.entries])


def test_errors_of_a_sensitive_step_are_for_people_to_read() -> None:
    journal = Journal().claim()
    journal.ask(start_do("login", sensitive=True))
    error = ErrorInfo("OSError", "the door is shut")
    entries = journal.ask(FinishAttempt(do("login"), 1, error=error, retryable=False))
    assert shown(entries[-1]).data["error"]["message"] == "the door is shut"
    (step,) = steps(journal.view)
    assert (step.value, step.error) == (None, ErrorInfo("OSError", "the door is shut"))
