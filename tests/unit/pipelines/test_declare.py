"""Declarations: what they become, and the errors of bad ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipelines import (
    Boolean,
    Choice,
    Concurrency,
    Number,
    Pipeline,
    Retry,
    Text,
    on_manual,
    on_pull_request,
    on_push,
    on_schedule,
    on_tag,
)
from pipelines.declare import describe


def pipeline(**attributes: Any) -> type[Pipeline]:
    async def run(self: Any, event: Any, step: Any) -> None:
        """Nothing."""

    return type("CI", (Pipeline,), {"run": run, **attributes})


def test_a_full_declaration_becomes_data() -> None:
    declared = pipeline(
        triggers=[
            on_push(branches=["main", "release/*"], paths=["src/**"]),
            on_tag(tags=["v*"]),
            on_pull_request(branches={"main"}),  # type: ignore[arg-type]  # a set is taken too
            on_schedule("0 3 * * *", timezone="Europe/Berlin"),
            on_manual(
                inputs={
                    "target": Choice("staging", "production"),
                    "note": Text("none"),
                    "dry": Boolean(),
                    "count": Number(3, minimum=1, maximum=9),
                }
            ),
        ],
        resume="latest",
        on_divergence="hold",
        concurrency=Concurrency(group="{ref}", limit=1, on_new="cancel_running"),
        timeout="2 hours",
    )
    found = describe(declared)
    assert (found["name"], found["resume"], found["timeout_ms"]) == ("CI", "latest", 7_200_000)
    assert found["concurrency"] == {"group": "{ref}", "limit": 1, "on_new": "cancel_running"}
    assert [trigger["kind"] for trigger in found["triggers"]] == [
        "push",
        "tag",
        "pull_request",
        "schedule",
        "manual",
    ]
    assert found["triggers"][4]["inputs"]["target"] == {
        "type": "choice",
        "options": ["staging", "production"],
        "default": "staging",
        "label": "",
    }


def test_the_smallest_declaration_has_defaults() -> None:
    assert describe(pipeline()) == {
        "name": "CI",
        "triggers": [],
        "resume": "pinned",
        "on_divergence": "accept",
        "concurrency": None,
        "timeout_ms": None,
    }


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"triggers": on_push()}, "pipeline CI: triggers must be a list such as"),
        ({"triggers": [on_push]}, "which is no trigger: call it, on_push()"),
        ({"triggers": ["push"]}, "triggers has 'push', which is no trigger"),
        ({"triggers": [on_push()] * 51}, "triggers may have 50 entries, got 51"),
        ({"resume": "newest"}, "resume must be one of pinned, latest, got 'newest'"),
        ({"on_divergence": "panic"}, "on_divergence must be one of accept, hold, fail"),
        ({"concurrency": {"limit": 1}}, "concurrency must be Concurrency"),
        ({"timeout": "2 moons"}, "timeout has the unknown unit 'moons'"),
        ({"timeout": 0}, "timeout must be at least 1 second"),
        ({"run": Pipeline.run}, "run is missing"),
    ],
)
def test_a_bad_class_is_an_error_that_names_class_and_attribute(
    attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        describe(pipeline(**attributes))
    assert said in str(caught.value)
    assert "pipeline CI" in str(caught.value)


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: on_push(branches="main"), "branches must be a list of texts, got 'main'"),
        (lambda: on_push(branches=[""]), r"branches\[0\] must not be empty"),
        (lambda: on_push(paths=["x" * 257]), r"paths\[0\] may have 256 characters"),
        (lambda: on_push(paths=["a"] * 101), "paths may have 100 entries, got 101"),
        (lambda: on_push(brunches=["main"]), "unexpected keyword argument 'brunches'"),  # type: ignore[call-arg]
        (lambda: on_tag(tags=[1]), r"tags\[0\] must be text, got int"),  # type: ignore[list-item]
        (lambda: on_schedule("daily"), "cron must have five fields"),
        (lambda: on_schedule("0 3 * * *", timezone=""), "timezone must not be empty"),
        (lambda: on_manual(inputs=["target"]), "inputs must be a dict"),  # type: ignore[arg-type]
        (lambda: on_manual(inputs={"a b": Text()}), "inputs has a bad field name 'a b'"),
        (lambda: on_manual(inputs={"a": str}), r"inputs\['a'\] must be Text, Boolean, Number"),  # type: ignore[dict-item]
        (lambda: Choice(), "Choice needs at least one option"),
        (lambda: Choice("a", "a"), "options must differ"),
        (lambda: Choice("a", default="b"), "default must be one of the options"),
        (lambda: Number("3"), "default must be a number, got str"),  # type: ignore[arg-type]
        (lambda: Number(float("nan")), "default must be finite"),
        (lambda: Boolean("yes"), "default must be True or False"),  # type: ignore[arg-type]
        (lambda: Concurrency(limit=0), "concurrency.limit must be between 1 and 10000"),
        (lambda: Concurrency(on_new="wait"), "concurrency.on_new must be one of queue"),
        (lambda: Concurrency("{nothing}"), r"concurrency.group may use \{ref\}.*got \{nothing\}"),
        (lambda: Concurrency("{ref!r}"), "concurrency.group may use"),
        (lambda: Concurrency("{ref.x}"), r"got \{ref.x\}"),
        (lambda: Concurrency("{}"), "concurrency.group may use"),
        (lambda: Concurrency("a{ref"), "concurrency.group 'a{ref': expected '}'"),
        (lambda: Retry(limit=10_001), "retries.limit must be between 0 and 10000"),
        (lambda: Retry(backoff="random"), "retries.backoff must be one of constant"),
        (lambda: Retry(delay="1 eon"), "retries.delay has the unknown unit 'eon'"),
    ],
)
def test_a_bad_argument_is_an_error_where_it_is_written(
    declare: Callable[[], Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        declare()
