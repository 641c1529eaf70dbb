"""Following a run: everything is told once, in order, whatever a look happens to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ci_platform.cli import watch
from ci_platform.cli.client import ClientError
from ci_platform.cli.watch import Watch, exit_code, open_gates, step_json
from ci_platform.errors import InvalidRequest


class FakeClient:
    """A run that is in a given state, and its logs."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {"state": "running", "steps": [], "waits": [], "number": 1}
        self.logs: dict[str, list[str]] = {}
        self.steps_page = 1_000
        self.asked_after: list[int] = []

    def get(self, path: str, **query: Any) -> Any:
        if not path.endswith("/logs"):
            self.asked_after.append(query["steps_after"])
            after, end = query["steps_after"], query["steps_after"] + self.steps_page
            cursor = end if end < len(self.run["steps"]) else None
            return self.run | {"steps": self.run["steps"][after:end], "steps_cursor": cursor}
        texts = self.logs.get(query["step"], [])
        lines = [{"number": n, "text": text} for n, text in enumerate(texts, 1)]
        return {"lines": lines[query["after"] : query["after"] + query["limit"]]}

    def step(self, name: str, state: str, kind: str = "sh") -> None:
        step = {"kind": kind, "name": name, "occurrence": 1, "state": state}
        names = [one["name"] for one in self.run["steps"]]
        place = names.index(name) if name in names else len(names)
        self.run["steps"][place : place + 1] = [step]


class Notes:
    """A Listener that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def step_queued(self, step: Any) -> None:
        self.told.append(f"queued {step['name']}")

    def step_began(self, step: Any) -> None:
        self.told.append(f"began {step['name']}")

    def lines(self, label: str, lines: Sequence[Any]) -> None:
        self.told += [f"{label}: {line['text']}" for line in lines]

    def step_ended(self, step: Any) -> None:
        self.told.append(f"{step['state']} {step['name']}")

    def waits(self, run: Any, wait: Any) -> None:
        self.told.append(f"waits for {wait['name']}")

    def run_ended(self, run: Any) -> None:
        self.told.append(f"run {run['state']}")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def following(client: FakeClient) -> tuple[Watch, list[str]]:
    notes = Notes()
    return Watch(client, "run_1", notes), notes.told  # type: ignore[arg-type]


def test_each_thing_is_told_once(client: FakeClient) -> None:
    follower, told = following(client)
    client.step("build", "running")
    client.logs["sh:build"] = ["one"]
    follower.look()
    follower.look()
    client.logs["sh:build"].append("two")
    client.step("build", "passed")
    follower.look()
    follower.look()
    assert told == ["began build", "build: one", "build: two", "passed build"]


def test_of_a_long_run_only_the_steps_are_asked_for_that_have_not_ended(
    client: FakeClient,
) -> None:
    follower, told = following(client)
    client.steps_page = 2
    for name in "abcde":
        client.step(name, "running" if name in "ce" else "passed")
    assert len(follower.look()["steps"]) == 5
    client.step("c", "failed")
    run = follower.look()
    assert [one["state"] for one in run["steps"]] == ["passed"] * 2 + [
        "failed",
        "passed",
        "running",
    ]
    follower.look()
    assert client.asked_after == [0, 2, 4, 2, 4, 4]
    ends = [line for line in told if not line.startswith("began")]
    assert ends == ["passed a", "passed b", "passed d", "failed c"]


def test_a_command_that_waits_for_a_worker_has_not_begun(client: FakeClient) -> None:
    follower, told = following(client)
    for state in ("queued", "queued", "running", "queued", "passed"):  # its worker was lost once
        client.step("build", state)
        follower.look()
    assert told == ["queued build", "began build", "passed build"]


def test_the_last_lines_come_before_the_end_of_their_step_and_of_the_run(
    client: FakeClient,
) -> None:
    follower, told = following(client)
    client.step("build", "failed")
    client.logs |= {"sh:build": ["boom"], "$run": ["printed"]}
    client.run["state"] = "failed"
    follower.look()
    assert told == [": printed", "began build", "build: boom", "failed build", "run failed"]


def test_a_log_longer_than_a_page_is_told_whole(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LINES_PER_READ", 3)
    follower, told = following(client)
    client.step("build", "running")
    client.logs["sh:build"] = [str(n) for n in range(10)]
    follower.look()
    assert told == ["began build", *(f"build: {n}" for n in range(10))]


def test_waits_for_people_and_events_are_told_but_not_those_for_commands(
    client: FakeClient,
) -> None:
    follower, told = following(client)
    client.run["waits"] = [
        {"kind": "operation", "name": "build", "since": "1"},
        {"kind": "approval", "name": "deploy", "since": "1"},
        {"kind": "timer", "name": "timer", "since": "1"},
    ]
    run = follower.look()
    follower.look()
    assert told == ["waits for deploy"]
    assert open_gates(run) == ["deploy"]


def test_the_event_loops_own_timers_are_no_steps_of_the_author(client: FakeClient) -> None:
    follower, told = following(client)
    client.step("timer", "waiting", kind="timer")
    follower.look()
    assert told == []


def test_until_ends_with_the_run_or_when_told_to(client: FakeClient) -> None:
    follower, _ = following(client)
    assert follower.until(stop=lambda run: True)["state"] == "running"
    client.run["state"] = "cancelled"
    assert follower.until()["state"] == "cancelled"
    with pytest.raises(TimeoutError, match="run_2 is still running after 0 s"):
        other = FakeClient()
        Watch(other, "run_2", Notes()).until(seconds=0)  # type: ignore[arg-type]


def test_only_a_run_that_passed_exits_with_0() -> None:
    states = ["passed", "failed", "errored", "cancelled"]
    assert [exit_code({"state": state}) for state in states] == [0, 1, 1, 1]


def test_a_step_is_named_as_in_its_page() -> None:
    assert step_json("sh:build#2") == {"kind": "sh", "name": "build", "occurrence": 2}
    with pytest.raises(InvalidRequest, match="expected kind:name"):
        step_json("build")
    with pytest.raises(InvalidRequest, match="is not a valid StepKind"):
        step_json("make:build")


# --- a server that is away ---


class Flaky(FakeClient):
    """Answers what it is given, in order: pages of a journal, or errors."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def get(self, path: str, **query: Any) -> Any:
        self.asked.append(query)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def away(status: int = 0) -> ClientError:
    return ClientError("no answer", status=status, problem={})


def page(*numbers: int, cursor: int, ended: bool = False) -> dict[str, Any]:
    return {"entries": [{"seq": n} for n in numbers], "cursor": cursor, "ended": ended}


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AWAY_POLL_SECONDS", 0)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)


@pytest.mark.usefixtures("no_pause")
def test_a_journal_goes_on_behind_the_last_entry_when_the_server_is_back() -> None:
    last = page(cursor=7, ended=True)
    client = Flaky(page(3, 4, cursor=6), away(), away(503), page(cursor=6), page(7, cursor=7), last)
    found = watch.entries(client, "run_1", after=2, types=["x"], steps=[])  # type: ignore[arg-type]
    assert [entry["seq"] for entry in found] == [3, 4, 7]
    assert [asked["after"] for asked in client.asked] == [2, 6, 6, 6, 6, 7]
    assert client.asked[0]["type"] == ["x"]


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize(
    "answers", [[away()], [page(cursor=1), away(404)], [page(cursor=1), away(401)]]
)
def test_a_server_that_was_never_there_and_one_that_refuses_are_told(answers: list[Any]) -> None:
    with pytest.raises(ClientError):
        list(watch.entries(Flaky(*answers), "run_1", steps=[]))  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_pause")
def test_a_server_that_stays_away_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", -1)
    with pytest.raises(ClientError):
        list(watch.entries(Flaky(page(cursor=1), away()), "run_1", steps=[]))  # type: ignore[arg-type]
