"""Shell commands of steps: workspaces, layers, and the OS sandbox they run in.

`app.py` builds one runner per worker process and hands it to the worker's operate duty:

    SandboxRunner(trees=..., objects=..., work_dir=..., limits=RunnerLimits(memory_bytes=...))

The only place for child processes of tenants. Knows nothing of runs, journals or the database.
"""

from ci_platform.runner.limits import RunnerLimits
from ci_platform.runner.sandboxed import SandboxRunner
from ci_platform.runner.unsandboxed import UnsandboxedRunner

__all__ = ["RunnerLimits", "SandboxRunner", "UnsandboxedRunner"]
