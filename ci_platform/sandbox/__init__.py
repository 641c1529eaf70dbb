"""Runs untrusted pipeline code: CPython in WebAssembly, in processes without any authority.

    sandbox = WasmSandbox(SandboxLimits(), cache=config.cache)   # builds the guest if need be
    sandbox.describe(source); sandbox.activate(activation, host); sandbox.close()

`ensure_guest(cache, progress)` builds the guest ahead of time, for a progress bar.
"""

from ci_platform.sandbox.build import ensure_guest
from ci_platform.sandbox.limits import SandboxLimits
from ci_platform.sandbox.pool import WasmSandbox

__all__ = ["SandboxLimits", "WasmSandbox", "ensure_guest"]
