"""The guest's entry point in plain Python: messages in, answers out, never an exception."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines import loading
from pipelines.determinism import Senses
from pipelines.guest import Guest
from pipelines.wire import VERSION
from tests.unit.pipelines.replay_world import Journal

HEAD = "import asyncio\nfrom pipelines import *\nclass CI(Pipeline):\n"
RUN = HEAD + "    async def run(self, event, step):\n        "


class Host:
    def __init__(self) -> None:
        self.logs: list[tuple[str, str, str]] = []
        self.commands: list[Any] = []
        self.modes: list[tuple[bool, int]] = []

    def next(self, commands: str) -> str:
        self.commands += json.loads(commands)
        return "[]"

    def log(self, step: str, stream: str, text: str) -> None:
        self.logs.append((step, stream, text))

    def outside(self, now_ms: int) -> None:
        self.modes.append((False, now_ms))

    def inside(self, body: str, ms: int) -> None:
        self.modes.append((True, 0))

    def sleep(self, ms: int) -> None:
        raise AssertionError("nobody sleeps here")

    def ask(self, request: str) -> str:
        raise AssertionError("nobody asks here")


@pytest.fixture
def host() -> Iterator[Host]:
    out, err = sys.stdout, sys.stderr
    yield Host()
    sys.stdout, sys.stderr = out, err
    loading.uninstall()


_GUESTS: list[Guest] = []  # kept, as the sandbox keeps its one


def ask(host: Host, code: str, **more: Any) -> Any:
    guest = Guest(host, Senses())
    _GUESTS.append(guest)
    message = {
        "v": VERSION,
        "op": "run",
        "files": {".ci/pipeline.py": code},
        "pipeline": "CI",
        "event": {"ref": "refs/heads/main", "params": {"n": 2}},
        "seed": "s",
        "entries": Journal().entries,
        "strict": True,
        **more,
    }
    return json.loads(guest.activate(json.dumps(message)))


def test_a_run_answers_with_what_it_returned(host: Host) -> None:
    code = RUN + "return [event.branch, event.params['n'], type(self.env).__name__]"
    answer = ask(host, code)
    assert answer == {"returned": ["main", 2, "Env"], "reusable": False}


def test_describe_answers_with_what_the_file_declares(host: Host) -> None:
    code = RUN.replace("CI(Pipeline):", "CI(Pipeline):\n    triggers = [on_push()]") + "pass"
    answer = ask(host, code, op="describe")
    (described,) = answer["described"]["pipelines"]
    assert (described["name"], described["triggers"][0]["kind"]) == ("CI", "push")


@pytest.mark.parametrize(
    ("code", "type", "said"),
    [
        ("def broken(:", "SyntaxError", "invalid syntax"),
        ("x = 1 / 0", "ZeroDivisionError", "division by zero"),
        ("import nowhere", "ModuleNotFoundError", "No module named 'nowhere'"),
        ("raise SystemExit(3)", "SystemExit", "sys.exit(3) was called"),
        ("raise BaseException('odd')", "BaseException", "odd"),
        ("x = 1", "NoPipeline", "declares no pipeline"),
    ],
)
@pytest.mark.parametrize("op", ["describe", "run"])
def test_a_file_that_does_not_load_says_why(
    host: Host, op: str, code: str, type: str, said: str
) -> None:
    answer = ask(host, code, op=op)
    assert answer["loading"] is True
    assert (answer["raised"]["type"], said in answer["raised"]["message"]) == (type, True)


def test_a_bad_declaration_is_found_when_the_file_is_described(host: Host) -> None:
    answer = ask(host, HEAD + "    resume = 'x'\n    async def run(self, e, s): ...", op="describe")
    assert answer["raised"]["message"].startswith("pipeline CI: resume must be one of")


def test_prints_go_to_the_log_of_the_run_and_of_the_step(host: Host) -> None:
    code = (
        "import sys\nprint('loading')\n"
        + RUN
        + (
            "print('outside', 1, end='!')\n"
            "        print('to stderr', file=sys.stderr)\n"
            "        await step.sleep('s', 1)"
        )
    )
    assert "suspended" in ask(host, code)
    assert ("$run", "stdout", "loading\noutside 1!") in host.logs
    assert ("$run", "stderr", "to stderr\n") in host.logs


def test_a_later_activation_prints_nothing_again(host: Host) -> None:
    code = "print('loading')\n" + RUN + "print('again')\n        await step.sleep('s', 1)"
    journal = Journal().started("sleep:s").add("run_suspended").add("run_claimed")
    assert "suspended" in ask(host, code, entries=journal.entries)
    assert host.logs == []


def test_what_is_printed_is_cleaned(host: Host) -> None:
    ask(host, RUN + "print('a\\ud800\\0b')")
    assert host.logs == [("$run", "stdout", "a?\ufffdb\n")]


def test_the_clock_of_the_first_claim_is_told_before_the_file_loads(host: Host) -> None:
    ask(host, RUN + "return 1")
    assert host.modes[0] == (False, Journal().entries[1]["at_ms"])


def test_a_run_that_is_no_coroutine_function_says_so(host: Host) -> None:
    answer = ask(host, HEAD + "    def run(self, event, step): return 1")
    assert "CI.run must be `async def run(self, event, step)`" in answer["raised"]["message"]


def test_a_pipeline_that_is_not_there_any_more_says_which_are(host: Host) -> None:
    answer = ask(host, RUN + "pass", pipeline="Gone")
    assert answer["loading"] is True
    assert "declares no pipeline 'Gone' at this commit; it has: CI" in answer["raised"]["message"]


def test_another_version_and_junk_are_answered_too(host: Host) -> None:
    assert "speaks version" in ask(host, "", v=99)["raised"]["message"]
    guest = Guest(host, Senses())
    assert "raised" in json.loads(guest.activate("junk"))
    assert "raised" in json.loads(guest.activate("{}"))


def test_code_that_keeps_to_itself_may_be_used_again(host: Host) -> None:
    assert ask(host, RUN + "return 1", reuse="digest")["reusable"] is True
    assert ask(host, "import os\n" + RUN + "return 1", reuse="digest")["reusable"] is False
