"""Running Python under another uid, when the tests run as root.

The interpreter, its packages and this tree may lie where other users cannot go (/root), so they
are made reachable in a mount namespace, by the runner's own launcher.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

from ci_platform.runner.launch import Launch

UID = 212_345
ROOT = Path(__file__).parent.parent.parent


def run_as_user(code: str, *arguments: str, scratch: Path) -> str:
    """Run a program as an ordinary user who owns `scratch`; what it printed. Fails if it fails."""
    packages = Path(site.getsitepackages()[0])
    shared = {"python": Path(sys.base_prefix), "site": packages, "scratch": scratch}
    launch = Launch(shared | {"ours": ROOT})
    os.chown(scratch, UID, UID)
    env = {
        "PYTHONPATH": f"{launch.path('site')}:{launch.path('ours')}",
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"{launch.path('python')}/lib",  # a shared libpython beside it
        "HOME": str(launch.path("scratch")),
    }
    python = launch.path("python") / "bin" / f"python3.{sys.version_info.minor}"
    argv = [
        "/usr/bin/env",
        *(f"{name}={value}" for name, value in env.items()),
        *(str(python), "-B", "-c", code, str(launch.path("scratch")), *arguments),
    ]
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        child = launch.start(argv, uid=UID, fds=[null, write, 2], limits={})
        os.close(write)
        with os.fdopen(read, "rb") as said:
            text = said.read().decode()
        found = child.wait()
        child.close()
    finally:
        os.close(null)
        launch.close()
    assert found.code == 0, f"exit code {found.code}: {text}"
    return text
