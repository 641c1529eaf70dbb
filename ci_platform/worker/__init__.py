"""Workers: claim runs and commands, execute them, keep leases alive, tidy up after the dead.

One duty per file, each with `run_once()`; loop.py puts them on threads. Decides nothing: what an
outcome means is the engine's.
"""

from ci_platform.worker.loop import Worker
from ci_platform.worker.settings import Settings, Tools

__all__ = ["Settings", "Tools", "Worker"]
