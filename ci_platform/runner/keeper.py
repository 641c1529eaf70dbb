"""The keeper of a worker's containers: waits beside it, and ends them if it dies.

Runs as a script of its own (`python -I -S keeper.py FD ENGINE LABEL`) and imports nothing of ours.
A container is no child of whoever asked for it, so nothing else ends it when a worker is killed.
FD is a pipe that the worker holds the other end of: a byte says that all is done, its end without
one that the worker died. What its engine was just starting appears a moment later, so the keeper
looks until it has seen nothing for a while.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

QUIET_LOOKS = 5  # without a container, one after the other: then none is coming any more
LOOK_SECONDS = 1.0
LOOKS_MAX = 60
_ENGINE_SECONDS = 60


def end_all(engine: str, label: str) -> None:
    """End the containers with a label, and those that still appear."""
    quiet = 0
    for _ in range(LOOKS_MAX):
        names = _call(engine, "ps", "--all", "--quiet", "--filter", f"label={label}").split()
        if names:
            _call(engine, "kill", *names)  # podman's rm waits 10 s for it to end by itself
            _call(engine, "rm", "--force", *names)
        quiet = 0 if names else quiet + 1
        if quiet == QUIET_LOOKS:
            return
        time.sleep(LOOK_SECONDS)


def _call(engine: str, *arguments: str) -> str:
    """What an engine says; nothing if it fails, for the next look."""
    try:
        done = subprocess.run(
            [engine, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ENGINE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode()


if __name__ == "__main__":
    if not os.read(int(sys.argv[1]), 1):
        end_all(sys.argv[2], sys.argv[3])
