"""The suite leaves out no method of the store: a test that runs on all of them calls each."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from ci_platform.ports import Store

SUITE = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).parent.glob("test_store_*.py"))
)
PARTS = {
    name: typing.get_type_hints(part.fget)["return"]
    for name, part in vars(Store).items()
    if isinstance(part, property) and part.fget is not None
}
METHODS = [
    (part, method)
    for part, protocol in PARTS.items()
    for method in dir(protocol)
    if not method.startswith("_") and callable(getattr(protocol, method))
]


def test_the_parts_of_the_store_are_found() -> None:
    assert {"runs", "operations", "approvals", "logs", "family", "memos"} <= set(PARTS)
    assert ("runs", "superseded_done") in METHODS, "what a Protocol inherits counts"


@pytest.mark.parametrize(("part", "method"), METHODS, ids=lambda name: str(name))
def test_the_contract_suite_calls_it(part: str, method: str) -> None:
    called = re.search(rf"\b{part}\.{method}\b", SUITE)
    assert called, f"no test under tests/contract calls store.{part}.{method}"
