"""Whether an interpreter may be used again after code has run in it: a look at the bytecode.

Only activations of equal code, of the same repository and trust, ever share an interpreter, so this
protects no one from anyone. It keeps a run from seeing what an earlier one left in a module of the
standard library. Code that might leave something there gets a fresh interpreter each time, and is
merely slower. Used by loading.py.
"""

from __future__ import annotations

import opcode
from collections.abc import Container
from types import CodeType

HARMLESS = frozenset(
    ("__future__", "abc", "asyncio", "base64", "binascii", "bisect", "calendar", "collections")
    + ("contextlib", "copy", "csv", "dataclasses", "datetime", "difflib", "enum", "fnmatch")
    + ("fractions", "functools", "graphlib", "hashlib", "heapq", "hmac", "html", "io", "ipaddress")
    + ("itertools", "json", "math", "numbers", "operator", "pathlib", "pipelines", "pprint")
    + ("random", "re", "secrets", "shlex", "statistics", "string", "struct", "textwrap", "time")
    + ("tomllib", "traceback", "typing", "unicodedata", "urllib", "uuid", "zlib", "zoneinfo")
)
_REACHING = frozenset(
    ("__builtins__", "__class__", "__dict__", "__globals__", "__import__", "__loader__")
    + ("__setattr__", "__spec__", "__subclasses__", "__traceback__", "compile", "delattr", "eval")
    + ("exec", "f_back", "gi_frame", "cr_frame", "globals", "set_event_loop", "setattr", "sys")
    + ("set_event_loop_policy", "set_task_factory", "tb_frame", "vars")
)
_STORES = frozenset(opcode.opmap[name] for name in ("STORE_ATTR", "DELETE_ATTR"))
_IMPORT, _EXTENDED = opcode.opmap["IMPORT_NAME"], opcode.opmap["EXTENDED_ARG"]
_PASSED_OVER = {opcode.opmap.get("CACHE", 0), _EXTENDED}


def keeps_to_itself(code: CodeType, own: Container[str]) -> bool:
    """True if the code surely leaves nothing behind outside its own modules, named in `own`."""
    if not _REACHING.isdisjoint(code.co_names):
        return False
    before = extended = 0
    raw = code.co_code
    for at in range(0, len(raw), 2):
        operation, argument = raw[at], raw[at + 1] | extended
        extended = argument << 8 if operation == _EXTENDED else 0
        if operation in _STORES and not opcode.opname[before].startswith("LOAD_FAST"):
            return False  # an attribute of something that is no local variable
        if operation == _IMPORT:
            top = code.co_names[argument].partition(".")[0]
            if top not in HARMLESS and top not in own:
                return False
        if operation not in _PASSED_OVER:
            before = operation
    return all(keeps_to_itself(c, own) for c in code.co_consts if isinstance(c, CodeType))
