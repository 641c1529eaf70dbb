"""Strict JSON for what goes into the journal: an error says which value, at which path.

`json.dumps` alone would write NaN, turn the key 1 into "1", and say only that a set is not
serialisable. Used for step results, params and the output of runs.
"""

from __future__ import annotations

import json
import math

from pipelines.checks import broken_unicode
from pipelines.wire import VALUE_DEPTH_MAX, Json

_PLAIN = (str, int, float, bool, type(None))


class NotJson(TypeError):
    """A value cannot be kept in the journal."""


def encode(value: Json, what: str, *, bytes_max: int) -> str:
    """The JSON text of a value. Raises NotJson naming `what` and the path inside it."""
    _check(value, what, "$", 0)
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > bytes_max:
        raise NotJson(f"{what} has {len(text)} bytes of JSON; the limit is {bytes_max}")
    return text


def _check(value: Json, what: str, path: str, depth: int) -> None:
    if isinstance(value, _PLAIN):
        _check_plain(value, what, path)
        return
    if depth >= VALUE_DEPTH_MAX:
        raise NotJson(f"{what} is nested deeper than {VALUE_DEPTH_MAX} levels, at {path[:200]}")
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise NotJson(f"{what} is not JSON: at {path}, the key {_show(key)} is not text")
            _check_plain(key, what, path)
            _check(each, what, f"{path}.{key[:40]}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            if type(each) is str or type(each) is int:  # most values; saves building their path
                _check_plain(each, what, path)
            else:
                _check(each, what, f"{path}[{index}]", depth + 1)
    else:
        raise NotJson(
            f"{what} is not JSON: at {path} is {_show(value)} of type {type(value).__name__}"
        )


def _check_plain(value: Json, what: str, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise NotJson(f"{what} is not JSON: at {path} is {value!r}")
    if isinstance(value, str) and broken_unicode(value):
        raise NotJson(f"{what} is not JSON: the text at {path} has broken Unicode (surrogates)")


def _show(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # an author's __repr__ may do anything
        text = f"<its __repr__ raised {type(error).__name__}>"
    return text if len(text) <= 80 else text[:79] + "…"
