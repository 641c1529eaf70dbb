"""Strict JSON: which value, at which path."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.jsontext import NotJson, encode
from pipelines.wire import VALUE_DEPTH_MAX

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # every text that is Unicode: no surrogates
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_json_goes_through_unchanged(value: Any) -> None:
    assert json.loads(encode(value, "it", bytes_max=1 << 30)) == value


class Opaque:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, {2}]}, r"it is not JSON: at \$\.a\[1\] is \{2\} of type set"),
        (b"x", r"at \$ is b'x' of type bytes"),
        ({1: 2}, r"at \$, the key 1 is not text"),
        ([float("nan")], r"at \$\[0\] is nan"),
        ({"x": float("-inf")}, r"at \$\.x is -inf"),
        (["\udcff"], "broken Unicode"),
        ({"\udcff": 1}, "broken Unicode"),
        (Opaque(), "its __repr__ raised RuntimeError"),
    ],
)
def test_what_is_not_json_is_named_with_its_path(value: Any, said: str) -> None:
    with pytest.raises(NotJson, match=said):
        encode(value, "it", bytes_max=1 << 20)


def test_nesting_and_size_have_limits() -> None:
    value: Any = 1
    for _ in range(VALUE_DEPTH_MAX):
        value = [value]
    encode(value, "it", bytes_max=1 << 20)
    with pytest.raises(NotJson, match=f"it is nested deeper than {VALUE_DEPTH_MAX} levels"):
        encode([value], "it", bytes_max=1 << 20)
    with pytest.raises(NotJson, match="it has 102 bytes of JSON; the limit is 100"):
        encode("x" * 100, "it", bytes_max=100)


def test_a_value_inside_itself_is_too_deep() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJson, match="nested deeper"):
        encode(loop, "it", bytes_max=1 << 20)
