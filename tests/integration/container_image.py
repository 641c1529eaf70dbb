"""Podman as these tests use it: whether it works on this machine, and an image of its own shell.

Nothing is fetched: the image is a tar of the programs that are here.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.container import find_engine
from ci_platform.runner.container_process import Engine

IMAGE = "localhost/sluice-test:1"
_PROGRAMS = (
    *("sh", "bash", "cat", "ls", "touch", "sleep", "seq", "rm", "mkdir", "ln", "chmod", "stat"),
    *("readlink", "head", "yes", "xargs", "sort", "env", "wc", "cp", "mv", "mkfifo", "test", "id"),
    *("true", "false", "printf", "grep", "sed", "find", "tr"),
)


@cache
def engine() -> Engine | None:
    """A podman that runs a container here, with the image there; None if there is none."""
    scratch = Path(tempfile.mkdtemp(prefix="sluice-test-podman-"))
    found = find_engine(scratch)
    if found is None or not found.is_podman:
        return None
    packed = subprocess.run(
        [found.path, "import", "--quiet", "-", IMAGE],
        input=_tar(),
        capture_output=True,
        check=False,
    )
    if packed.returncode != 0:
        return None
    for runtime in (None, "runc"):  # crun refuses machines with both versions of control groups
        given = replace(found, runtime=runtime)
        extra = ["--runtime", runtime] if runtime else []
        try:
            limits = ("--ulimit", "nofile=256:256", "--ulimit", "nproc=64:64")
            given.call(*extra, "run", "--rm", "--network", "none", *limits, IMAGE, "true")
        except RunnerUnavailable:
            continue
        return given
    return None


def _tar() -> bytes:
    places = {name: shutil.which(name) for name in _PROGRAMS}
    programs = [Path(place).resolve() for place in places.values() if place]
    told = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=True)
    needed = {word for word in told.stdout.split() if word.startswith("/") and word[-1] != ":"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in sorted(needed):
            archive.add(Path(name).resolve(), name)
        for name, place in sorted(places.items()):
            if place:
                archive.add(Path(place).resolve(), f"/bin/{name}")
    return packed.getvalue()
