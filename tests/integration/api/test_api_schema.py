"""The API against its own OpenAPI document, with requests that schemathesis makes up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ci_platform.model import Json
from tests.integration.api.front import Front

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 20  # of each operation, good and bad
STREAMS = r"/(events|follow)$"  # they do not end while their run does not: see test_streams.py


@pytest.fixture
def world(front: Front) -> Iterator[Front]:
    front.repository()
    yield front


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_what_the_document_says(world: Front, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", world.usual_app)
    operations = schema.exclude(path_regex=STREAMS, method="GET")
    headers = {"Authorization": f"Bearer {world.token()}"}
    tried = 0
    for found in operations.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def try_it(case: schemathesis.Case[Json]) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        try:
            try_it()
        except Unsatisfiable:
            # There is nothing to get wrong: no parameters, no body.
            assert mode is GenerationMode.NEGATIVE, operation.label
            continue
        tried += 1
    assert tried > 20
