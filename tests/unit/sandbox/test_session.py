"""A conversation with a sandbox process that says what the test wrote for it beforehand."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from ci_platform.model import (
    Broke,
    Command,
    Entry,
    EntryKind,
    Mismatch,
    Raised,
    Returned,
    SourceFiles,
    Suspended,
)
from ci_platform.ports.granting import Ask
from ci_platform.ports.sandbox import Activation
from ci_platform.sandbox import wiring
from ci_platform.sandbox.channel import RSS, Channel, Frame
from ci_platform.sandbox.decode import BadMessage
from ci_platform.sandbox.limits import SandboxLimits
from ci_platform.sandbox.session import Session

LIMITS = SandboxLimits(wall_seconds=0.05)
START = [{"op": "start", "key": ["sleep", "s", 1], "config": {"duration_ms": 5}}]
ENTRY = Entry(3, EntryKind.STEP_STARTED, 1_000)
ACTIVATION = Activation(
    source=SourceFiles("repo", "c" * 40, {".ci/pipeline.py": ""}, "digest"),  # type: ignore[arg-type]
    pipeline="CI",
    event={},
    seed="s",
    entries=(ENTRY,),
    strict=True,
)


_OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _sockets() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


class Host:
    def __init__(self, *answers: Sequence[Entry] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Sequence[Command]] = []
        self.logs: list[tuple[str, str, str]] = []
        self.questions: list[Ask] = []

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        self.asked.append(commands)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def log(self, step: str, stream: str, text: str) -> None:
        self.logs.append((step, stream, text))

    def ask(self, ask: Ask) -> Mapping[str, Any]:
        self.questions.append(ask)
        return {"value": len(self.questions)}


class Script:
    """What the process will say, and what it is told."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        _OPEN.extend((ours, theirs))
        self.session = Session(Channel(ours), LIMITS)
        self.process = Channel(theirs)

    def says(self, frame: Frame, payload: Any = b"") -> Script:
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        if frame in (Frame.ANSWER, Frame.TRAP):
            payload = RSS.pack(5_000) + payload
        self.process.send(frame, payload)
        return self

    def run(self, host: Host | None) -> Any:
        return self.session.converse(0, "{}", host)


def test_commands_are_served_and_the_answer_returned() -> None:
    script = Script().says(Frame.NEXT, START).says(Frame.ANSWER, {"returned": 1})
    host = Host([ENTRY])
    assert script.run(host) == {"returned": 1}
    assert script.session.resident_bytes == 5_000
    assert not script.session.dead
    assert script.process.receive(seconds=1)[0] is Frame.ACTIVATE
    frame, payload = script.process.receive(seconds=1)
    assert (frame, json.loads(payload)[0]["seq"]) == (Frame.NEXT, 3)


def question(**other: Any) -> dict[str, Any]:
    return {"v": 1, "capability": "storage.kv", "method": "get", "arguments": {"key": "a"}} | other


def test_a_question_is_passed_on_and_its_answer_sent_back() -> None:
    script = Script().says(Frame.ASK, question()).says(Frame.ANSWER, {"returned": 1})
    host = Host()
    assert script.run(host) == {"returned": 1}
    assert host.questions == [Ask("storage.kv", "get", {"key": "a"})]
    script.process.receive(seconds=1)
    frame, payload = script.process.receive(seconds=1)
    assert (frame, json.loads(payload)) == (Frame.ASK, {"value": 1})


@pytest.mark.parametrize(
    "asked",
    [
        question(v=2),
        question(capability="../secrets"),
        question(capability=None),
        question(method="Get"),
        question(method=""),
        question(arguments=[]),
        question(arguments={"key": "\ud800"}),
        question(repository_id="repo_b"),
        {"capability": "files"},
        [],
        b"\xff",
        b"{",
        question(arguments={"key": "x" * (3 << 20)}),
    ],
)
def test_a_question_that_no_pipeline_asks_ends_the_process(asked: Any) -> None:
    script, host = Script(), Host()
    sender = threading.Thread(target=script.says, args=(Frame.ASK, asked))  # may be large
    sender.start()
    assert script.run(host).error.type == "SandboxProtocol"
    sender.join()
    assert script.session.dead
    assert host.questions == []


def test_a_guest_that_was_told_to_suspend_is_not_listened_to_any_more() -> None:
    answers: list[Any] = [{"returned": 1}, {"raised": {}}, {"suspended": True}]
    for last in answers:
        script = Script().says(Frame.NEXT, []).says(Frame.ANSWER, last)
        script.run(Host(()))
        assert script.session.stopped


def test_a_guest_that_goes_on_asking_after_that_loses_its_process() -> None:
    script = Script().says(Frame.NEXT, []).says(Frame.NEXT, START)
    host = Host(())
    assert script.run(host) == Suspended()
    assert script.session.dead
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    ("frame", "payload", "said"),
    [
        (Frame.NEXT, b"junk", "a message is not JSON"),
        (Frame.NEXT, b"\xff\xfe", "bytes that are no text"),
        (Frame.NEXT, {"too_large": 5}, "a message is no list"),
        (Frame.NEXT, [{"op": "x"}], "a step's key"),
        (Frame.ANSWER, b"junk", "its answer is not JSON"),
        (Frame.ANSWER, [1], "an answer that is no object"),
    ],
)
def test_what_no_pipeline_says_fails_the_run_and_ends_the_process(
    frame: Frame, payload: Any, said: str
) -> None:
    script = Script().says(frame, payload)
    found = script.run(Host())
    assert isinstance(found, Raised)
    assert (found.error.type, said in found.error.message) == ("SandboxProtocol", True)
    assert script.session.dead


@pytest.mark.parametrize(
    ("kind", "limit", "said"),
    [
        ("cpu", "cpu", "more than 30 seconds of CPU time"),
        ("recursion", "recursion", "called itself too deeply"),
        ("output", "output", "limit: output"),
        ("exit", None, "ended its interpreter"),
        ("crash", "crash", "memory limit of 256 MiB"),
    ],
)
def test_a_trap_names_its_limit(kind: str, limit: str | None, said: str) -> None:
    script = Script().says(Frame.TRAP, [kind, "detail"])
    found = script.run(Host())
    assert isinstance(found, Raised)
    assert (found.limit, said in found.error.message) == (limit, True)
    assert script.session.trapped and not script.session.dead


def test_a_silent_process_is_given_up() -> None:
    script = Script()
    found = script.run(Host())
    assert isinstance(found, Raised) and found.limit == "wall"
    assert script.session.dead


def test_a_process_that_dies_breaks_the_activation_and_not_the_run() -> None:
    script = Script()
    script.process.close()
    found = script.run(Host())
    assert isinstance(found, Broke)
    assert script.session.dead


def test_an_error_of_the_host_is_raised_and_the_guest_dismissed() -> None:
    script = Script().says(Frame.NEXT, START).says(Frame.ANSWER, {"suspended": True})
    with pytest.raises(LookupError, match="lease"):
        script.run(Host(LookupError("lease")))
    assert not script.session.dead
    script.process.receive(seconds=1)
    assert "fatal" in json.loads(script.process.receive(seconds=1)[1])


def test_a_guest_that_does_not_let_itself_be_dismissed_loses_its_process() -> None:
    script = Script().says(Frame.NEXT, START).says(Frame.NEXT, START)
    with pytest.raises(LookupError):
        script.run(Host(LookupError("lease")))
    assert script.session.dead


def test_prints_are_cleaned_and_streams_that_do_not_exist_are_not_invented() -> None:
    script = Script().says(Frame.LOG, ["$run", "evil", "a\ud800\0"])
    script.says(Frame.ANSWER, {"suspended": True})
    host = Host()
    script.run(host)
    assert host.logs == [("$run", "stdout", "a?\ufffd")]


def test_a_file_that_is_only_described_may_not_ask_for_anything() -> None:
    found = Script().says(Frame.NEXT, START).run(None)
    assert isinstance(found, Raised)
    assert "only asked to describe itself" in found.error.message


# --- answers into outcomes ---


def outcome(answer: Any) -> Any:
    return wiring.outcome(answer, ACTIVATION, SandboxLimits(value_bytes=100))


def test_answers_become_outcomes() -> None:
    assert outcome({"returned": [1]}) == Returned([1])
    assert outcome({"mismatch": {"seq": 3, "expected": "do:a", "got": "do:b"}}) == Mismatch(
        3, "do:a", "do:b"
    )
    raised = outcome({"raised": {"type": "E", "message": "m"}, "loading": True})
    assert (raised.error.type, raised.loading, raised.limit) == ("E", True, None)


def test_memory_errors_name_the_limit() -> None:
    raised = outcome({"raised": {"type": "MemoryError", "message": ""}})
    assert (raised.limit, raised.error.message) == (
        "memory",
        "the code used more than its 256 MiB of memory",
    )


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"suspended": True},  # without having been told to
        {"returned": "x" * 200},
        {"raised": "no"},
        {"mismatch": {"seq": "3", "expected": "a", "got": "b"}},
        {"mismatch": None},
    ],
)
def test_answers_that_no_guest_gives_are_refused(answer: Any) -> None:
    with pytest.raises(BadMessage):
        outcome(answer)
