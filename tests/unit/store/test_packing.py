"""JSON in columns: it comes back as it went in, small, and old rows stay readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_platform.errors import InternalError, InvalidRequest
from ci_platform.model import Json
from ci_platform.store.packing import pack, unpack

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_any_json_comes_back(value: Json) -> None:
    assert unpack(pack(value, "value")) == value


def test_what_the_platform_writes_takes_half() -> None:
    data = {"trigger": "push", "actor": "ann", "pipeline": "CI", "ref": "refs/heads/main"}
    assert len(pack(data, "data")) < len(str(data)) / 2


def test_short_values_stay_readable() -> None:
    assert pack({"limit": 1}, "data") == b'{"limit":1}'


def test_a_value_packed_by_the_first_release_is_read_for_ever() -> None:
    packed = bytes.fromhex(FIRST)
    assert unpack(packed) == {"worker": "box-7:1:worker", "fence": 3, "text": "fence " * 5}


FIRST = "01204d1d0100b8626f782d37332c2274657874223a2266656e636520227d030052e092d9a436c60a02"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"\x01", b"\x01garbage", b"\x01" + b"\xff" * 40]
)
def test_a_damaged_value_is_the_platforms_error(data: bytes) -> None:
    with pytest.raises(InternalError, match="damaged"):
        unpack(data)


def test_what_is_not_json_is_refused_by_name() -> None:
    deep: Json = []
    for _ in range(100_000):
        deep = [deep]
    for value in ({1}, float("nan"), deep, {(1, 2): 3}):
        with pytest.raises(InvalidRequest, match="the answer is not JSON") as caught:
            pack(value, "the answer")
        assert caught.value.field == "the answer"
