"""Running Python under another uid, when the tests run as root.

The interpreter, its packages and this tree may lie where other users cannot go (/root), so they
are made reachable in a mount namespace, by the runner's own launcher.
"""

from __future__ import annotations

import os
import signal
import site
import sys
from contextlib import suppress
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
        "XDG_RUNTIME_DIR": str(launch.path("scratch") / "run"),
    }
    runtime = scratch / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    os.chown(runtime, UID, UID)
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
        for kept in runtime.rglob("pause.pid"):  # podman holds on to the namespaces it was first in
            with suppress(ProcessLookupError):
                os.kill(int(kept.read_text()), signal.SIGKILL)
    assert found.code == 0, f"exit code {found.code}: {text}"
    return text
