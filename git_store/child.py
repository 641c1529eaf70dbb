"""Child processes for heavy work: lean Python ones, and git itself.

A child ends when the server does, has limits on its memory and processor time, and an environment
of its own in which git finds no configuration. index_process.py and pack_process.py start them
here, and call `confine` first thing in them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from git_store.limits import Limits

_PR_SET_PDEATHSIG = 1
# The package's own __init__ would bring the database and object storage: 45 MB and 0.3 s.
_LAUNCH = (
    "import sys, types; package = types.ModuleType('git_store'); package.__path__ = [sys.argv[1]];"
    "sys.modules['git_store'] = package; from git_store.{} import main; main()"
)
# No hook, no helper, no file of anyone's settings: what is worked on is a stranger's.
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.alternateRefsCommand=",
    "core.bigFileThreshold=4m",  # larger files are streamed, never held
    "core.deltaBaseCacheLimit=8m",
    "core.fsync=none",  # who keeps what it writes syncs it
    "pack.windowMemory=8m",
    "pack.deltaCacheSize=8m",
    "protocol.allow=never",
)


def start_python(
    module: str,
    *arguments: str,
    limits: Limits,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A child that runs `main` of a module of this package; its `confine` answers `arguments`."""
    bounds = (os.getpid(), limits.process_memory_bytes, limits.process_seconds)
    paths = [path for path in sys.path if path]
    return subprocess.Popen(
        [
            *(sys.executable, "-S", "-c", _LAUNCH.format(module), str(Path(__file__).parent)),
            *map(str, bounds),
            *arguments,
        ],
        env={**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
    )


def start_git(
    git: Path,
    directory: Path,
    *arguments: str,
    limits: Limits,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """git, on the bare repository in `directory`, confined as a Python child is."""
    settings = [word for one in _SETTINGS for word in ("-c", one)]
    command = [str(git), "--git-dir", str(directory), *settings, *arguments]
    return start_python("child", *command, limits=limits, stdin=stdin, stdout=stdout, stderr=stderr)


def start_here(
    git: Path,
    directory: Path,
    *arguments: str,
    also: Mapping[str, str] | None = None,
    given: Iterable[bytes] = (),
    stdin: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """In a child: git, on the bare repository in `directory`, within the child's own bounds. It is
    given lines, unless `stdin` is something else."""
    if stdin is None:
        with tempfile.TemporaryFile(dir=directory) as lines:
            lines.writelines(b"%s\n" % line for line in given)
            lines.seek(0)
            return start_here(git, directory, *arguments, also=also, stdin=lines, stderr=stderr)
    settings = [word for one in _SETTINGS for word in ("-c", one)]
    return subprocess.Popen(
        [str(git), "--git-dir", str(directory), *settings, *arguments],
        env={**_ENVIRONMENT, **(also or {})},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        preexec_fn=_end_together,  # a child has one thread, so this is safe
    )


def _end_together() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def confine() -> list[str]:
    """In a child: end with the server, and take no more than its share. The arguments."""
    parent, memory, seconds = (int(word) for word in sys.argv[2:5])
    _end_together()
    if os.getppid() != parent:
        raise SystemExit(1)  # it died before we could ask to be told
    # Maps of pack files do not count here: only memory of the child's own.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return sys.argv[5:]


def main() -> None:
    """The child that becomes git."""
    command = confine()
    os.environ.pop("PYTHONPATH", None)
    os.execv(command[0], command)


def end(child: subprocess.Popen[bytes]) -> int:
    """End a child that has ended, or that nobody waits for any more; its exit status."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    return child.wait()
