"""Functions of the host that the guest may call, straight on wasmtime's C functions.

wasmtime-py's own way asks for the types of a function's parameters at every call, which takes 18 us
and an activation makes dozens. Here they are known: texts and 64-bit numbers. Used by host.py,
whose functions answer for themselves; one that raises nevertheless answers nothing.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

from wasmtime import _bindings as capi
from wasmtime import _ffi
from wasmtime.component import LinkerInstance

from ci_platform.model import Json

_TEXT = _ffi.WASMTIME_COMPONENT_STRING.value
_BYTES = ctypes.POINTER(ctypes.c_uint8)
_NOTHING_TO_FREE: Json = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()
_log = logging.getLogger(__name__)


def add_function(into: LinkerInstance, name: str, function: Callable[..., str | None]) -> object:
    """Define `name` with texts and numbers for parameters, and a text or nothing for a result.
    What is returned must live as long as the linker does."""

    def call(_data: Json, _context: Json, _type: Json, given: Json, count: int, *to: Json) -> int:
        results, results_count = to
        answer = None
        try:
            answer = function(*[_taken(given[index]) for index in range(count)])
        except Exception:  # nothing may be raised through wasmtime
            _log.exception("the host function %s failed", name)
        if results_count:
            _give(results[0], answer or "")
        return 0

    callback = capi.wasmtime_component_func_callback_t(call)
    encoded = name.encode()
    failed = capi.wasmtime_component_linker_instance_add_func(
        into.ptr(), encoded, len(encoded), callback, None, _NOTHING_TO_FREE
    )
    if failed:
        raise RuntimeError(f"wasmtime does not take the host function {name}")
    return callback


def _taken(value: Json) -> str | int:
    """A parameter as Python's; it is ours to free."""
    if value.kind != _TEXT:
        return int(value.of.u64)
    text = value.of.string
    try:
        return ctypes.string_at(text.data, text.size).decode()
    finally:
        capi.wasm_byte_vec_delete(ctypes.byref(text))


def _give(result: Json, text: str) -> None:
    data = text.encode("utf-8", "replace")
    result.kind = _TEXT
    pointer = ctypes.cast(ctypes.c_char_p(data), _BYTES)
    capi.wasm_byte_vec_new(ctypes.byref(result.of.string), len(data), pointer)
