"""The real build of the guest, by two processes at once, into a cache that was damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ci_platform.model import Returned
from ci_platform.sandbox import SandboxLimits, WasmSandbox, ensure_guest
from ci_platform.sandbox.build import guest_key
from tests.integration.sandbox_world import activate, pipeline

BUILD = """
import sys
from pathlib import Path
from ci_platform.sandbox import ensure_guest
ensure_guest(Path(sys.argv[1]), lambda fraction, text: print(text))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_at_once_build_one_working_guest(tmp_path: Path) -> None:
    damaged = tmp_path / f"guest-{guest_key()}.cwasm"
    damaged.write_bytes(b"\x7fELF, but no more")
    damaged.with_suffix(".json").write_text('{"sha256": "of something else"}')
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("compiling the sandbox" in text for text in said) == 1
    assert not list(tmp_path.glob("build-*"))
    sandbox = WasmSandbox(SandboxLimits(processes=1), tmp_path)
    try:
        assert activate(sandbox, pipeline("return 1")) == Returned(1)
    finally:
        sandbox.close()
    assert ensure_guest(tmp_path).path == damaged
