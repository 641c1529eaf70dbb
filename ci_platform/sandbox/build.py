"""Builds the sandbox's guest: `pipelines` and the standard library as one WebAssembly component,
compiled for this machine's CPU, kept in the cache under a key of everything that went into it.

`ensure_guest` is the only door: it is safe to call from several processes at once, and replaces a
missing, outdated or damaged file. Called by app.py at start and by pool.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import pipelines
from ci_platform.errors import SandboxUnavailable

KEPT_BUILDS = 3  # older ones are removed
BUILD_SECONDS_MAX = 600
TYPICAL_SECONDS = {"build": 14.0, "compile": 8.0}  # for the progress bar
_COMPONENTIZE = "import sys; from componentize_py import script; sys.exit(script())"
_HERE = Path(__file__).parent

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A compiled guest, whole and checked."""

    path: Path
    key: str


def ensure_guest(cache: Path, progress: Progress | None = None) -> GuestFile:
    """Return the guest for this code and machine, building it first if need be.

    `progress(fraction, text)` is called a few times a second while it is built. Raises
    SandboxUnavailable with the build's output if it cannot be built.
    """
    report = progress or (lambda fraction, text: None)
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = _guest_file(cache)
        if _is_whole(found.path):
            return found
        with _locked(cache / "guest.lock", report):
            if not _is_whole(found.path):  # another process may have built it meanwhile
                _build(found.path, report)
                _prune(cache, keep=found.path)
    except OSError as error:
        raise SandboxUnavailable(f"the guest cannot be kept in {cache}: {error}") from error
    report(1.0, "sandbox ready")
    return found


def is_built(cache: Path) -> bool:
    """Whether there is a guest for this code and machine. `ensure_guest` also reads all of it."""
    found = _guest_file(cache)
    return found.path.is_file() and _note(found.path).is_file()


def _guest_file(cache: Path) -> GuestFile:
    key = guest_key()
    return GuestFile(cache / f"guest-{key}.cwasm", key)


def guest_key() -> str:
    """A digest of all that decides what the compiled guest is."""
    digest = hashlib.sha256()
    for path in _inputs():
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    for part in (version("componentize-py"), version("wasmtime"), platform.machine(), _cpu()):
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:32]


def _inputs() -> list[Path]:
    package = Path(pipelines.__file__).parent
    return [*sorted(package.glob("*.py")), *sorted((_HERE / "guest").glob("*.*"))]


def _cpu() -> str:
    """The CPU's features: code compiled for more of them than a machine has would not load."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()


def _is_whole(path: Path) -> bool:
    """Whether the file is what the build wrote: wasmtime trusts it, so damage must show here."""
    try:
        note = json.loads(_note(path).read_text())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return bool(note == {"sha256": digest})
    except (OSError, ValueError):
        return False


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _locked(path: Path, report: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(0.0, "waiting for another process that builds the sandbox")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path, report: Progress) -> None:
    """Build in a folder of its own; the last rename makes it visible, whole."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
        app, wasm = Path(folder, "app"), Path(folder, "guest.wasm")
        shutil.copytree(
            Path(pipelines.__file__).parent,
            app / "pipelines",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copy(_HERE / "guest" / "guest_app.py", app)
        wit = str(_HERE / "guest" / "sluice.wit")
        command = [sys.executable, "-c", _COMPONENTIZE, "-q", "-d", wit, "-w", "guest"]
        command += ["componentize", "guest_app", "-p", str(app), "-o", str(wasm)]
        _watch(command, report, stage="build", text="building the sandbox", span=(0.0, 0.6))
        compiled = Path(folder, "guest.cwasm")
        command = [sys.executable, "-m", "ci_platform.sandbox.compile", str(wasm), str(compiled)]
        _watch(command, report, stage="compile", text="compiling the sandbox", span=(0.6, 1.0))
        with compiled.open("rb") as file:
            note = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            os.fsync(file.fileno())
        _note(path).unlink(missing_ok=True)
        compiled.replace(path)
        fresh = Path(folder, "note.json")
        fresh.write_text(json.dumps(note))
        fresh.replace(_note(path))


def _watch(
    command: list[str], report: Progress, *, stage: str, text: str, span: tuple[float, float]
) -> None:
    """Run one stage as a process of its own: it takes much memory, and its prints are not ours."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_env()
        )
        try:
            while True:
                passed = time.monotonic() - begun
                done = min(0.97, passed / TYPICAL_SECONDS[stage])
                report(span[0] + (span[1] - span[0]) * done, text)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                    break
                if passed > BUILD_SECONDS_MAX:
                    raise SandboxUnavailable(f"{text} took more than {BUILD_SECONDS_MAX} seconds")
        finally:
            child.kill()
            child.wait()
        if child.returncode != 0:
            output.seek(0)
            said = output.read().decode("utf-8", "replace")[-4_000:]
            if child.returncode < 0:  # and it had no time to say anything
                said += f"it was ended by {signal.Signals(-child.returncode).name}"
            raise SandboxUnavailable(f"{text} failed: {said}")


def _env() -> dict[str, str]:
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    return {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def _prune(cache: Path, *, keep: Path) -> None:
    others = sorted(
        (path for path in cache.glob("guest-*.cwasm") if path != keep),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in others[KEPT_BUILDS - 1 :]:
        if _unused(path):
            path.unlink(missing_ok=True)
            _note(path).unlink(missing_ok=True)
    for left in cache.glob("build-*"):  # by a build that was killed: there is one at a time
        shutil.rmtree(left, ignore_errors=True)


def _unused(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def hold(guest: Path) -> BinaryIO:
    """Keep a guest from being removed by a newer program's build, until the file is closed."""
    file = guest.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file
