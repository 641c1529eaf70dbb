from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines import CapabilityError, Event, NonRetryable, NotGranted, Pipeline
from pipelines.env import Desk, Env
from pipelines.loop import BODY, Body
from pipelines.testing import PipelineTest


class Host:
    """Keeps what it was asked, and answers what the test says."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []

    def __call__(self, request: str) -> str:
        self.asked.append(json.loads(request))
        return json.dumps(self.answer)


def finished(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


@pytest.fixture
def in_body() -> Any:
    token = BODY.set(Body(("do", "x", 1), 1))
    yield
    BODY.reset(token)


def test_a_question_names_its_version_capability_method_and_arguments() -> None:
    host = Host({"value": "text"})
    assert finished(Env(Desk(host)).files.read_text("a.txt")) == "text"
    arguments = {"path": "a.txt"}
    assert host.asked == [
        {"v": 1, "capability": "files", "method": "read_text", "arguments": arguments}
    ]


@pytest.mark.usefixtures("in_body")
def test_a_value_that_is_none_is_no_missing_value() -> None:
    assert finished(Env(Desk(Host({"value": [None]}))).storage.kv.get("a", "default")) is None
    assert finished(Env(Desk(Host({"value": []}))).storage.kv.get("a", "default")) == "default"


@pytest.mark.usefixtures("in_body")
def test_bytes_travel_both_ways() -> None:
    host = Host({"value": [{"a": {"base64": "AP8="}, "b": 1}]})
    rows = finished(Env(Desk(host)).storage.sql.execute("SELECT ?", b"\x00\xff"))
    assert rows == [{"a": b"\x00\xff", "b": 1}]
    assert host.asked[0]["arguments"]["arguments"] == [{"base64": "AP8="}]


@pytest.mark.usefixtures("in_body")
def test_a_list_as_argument_is_refused_with_how_to_write_it() -> None:
    with pytest.raises(TypeError, match="once for each `\\?`"):
        finished(Env(Desk(Host({}))).storage.sql.execute("SELECT ?", [1]))


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("NotGranted", NotGranted),
        ("FileNotFoundError", FileNotFoundError),
        ("SqlError", CapabilityError),
    ],
)
def test_a_refusal_is_an_exception_to_catch(kind: str, raised: type[Exception]) -> None:
    env = Env(Desk(Host({"error": {"type": kind, "message": "because"}})))
    with pytest.raises(raised, match="because") as caught:
        finished(env.files.changed())
    assert getattr(caught.value, "type", kind) == kind


def test_storage_between_steps_is_refused_before_anybody_is_asked() -> None:
    host = Host({"value": None})
    with pytest.raises(NotGranted, match="for bodies of steps"):
        finished(Env(Desk(host)).storage.kv.put("a", 1))
    assert host.asked == []


def test_what_does_not_exist_is_an_attribute_error_and_what_is_not_there_yet_is_not_granted() -> (
    None
):
    with pytest.raises(AttributeError, match="it may have files"):
        Env().missing  # noqa: B018
    with pytest.raises(NotGranted, match="secrets"):
        Env().secrets  # noqa: B018


class Counting(Pipeline):
    async def run(self, event: Event, step: Any) -> Any:
        async def count() -> int:
            number: int = 1 + await self.env.storage.kv.get("count", 0)
            await self.env.storage.kv.put("count", number)
            await self.env.storage.sql.execute("INSERT INTO log VALUES (?)", number)
            return number

        version = await self.env.files.read_text("VERSION")
        return [version, await self.env.files.changed(), await step.do("count", count)]


@pytest.mark.parametrize("hibernate", ["auto", "always"])
def test_a_test_of_a_pipeline_gives_files_and_sees_what_is_stored(hibernate: str) -> None:
    test = PipelineTest(Counting, hibernate=hibernate, files={"VERSION": "7"}, changed=["a"])
    test.kv["count"] = 41
    test.sql.execute("CREATE TABLE log (number)")
    run = test.run()
    assert run.output == ["7", ["a"], 42], run.error
    assert test.kv == {"count": 42}
    assert test.sql.execute("SELECT number FROM log").fetchall() == [(42,)]


class Careless(Pipeline):
    async def run(self, event: Event, step: Any) -> Any:
        async def broken() -> None:
            try:
                await self.env.storage.sql.execute("SELEC 1")
            except CapabilityError as error:
                raise NonRetryable(error.type) from error

        await step.do("broken", broken)


def test_a_bad_statement_fails_in_a_test_as_it_does_on_a_server() -> None:
    run = PipelineTest(Careless).run()
    assert run.state == "failed"
    assert run.error is not None
    assert run.error["message"] == "SqlError"
