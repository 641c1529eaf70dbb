"""Compiles the guest for this machine's CPU: `python -m ci_platform.sandbox.compile WASM INTO`.

A process of its own, started by build.py: it takes much memory, and whoever only wants a guest that
is there need not load wasmtime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import wasmtime
from wasmtime.component import Component

from ci_platform.sandbox.machine import engine_config


def compile_component(wasm: Path, into: Path) -> None:
    engine = wasmtime.Engine(engine_config())
    into.write_bytes(Component.from_file(engine, str(wasm)).serialize())


if __name__ == "__main__":
    compile_component(Path(sys.argv[1]), Path(sys.argv[2]))
