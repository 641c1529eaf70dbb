"""What of a machine the result of a command may depend on: its processor, system and Python.

Two machines that say the same may use each other's memoised results.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from functools import cache


@cache
def machine() -> Mapping[str, str]:
    try:
        system = platform.freedesktop_os_release()
    except OSError:  # no file says what this is
        system = {}
    return {
        "processor": platform.machine(),
        "system": f"{system.get('ID', 'linux')} {system.get('VERSION_ID', '')}".strip(),
        "python": platform.python_version() if sys.implementation.name == "cpython" else "other",
    }
