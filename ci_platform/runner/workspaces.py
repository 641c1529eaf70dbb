"""Workspaces: one directory per command, `jobs/<name>`, under a uid of its own where we are root.

A workspace is the commit's tree with the base layers on top: an overlay over the cached tree, or a
copy of it where there can be no overlay. Layers are always written into it: as directories below,
each would be one more that commands cannot rename. One in which a command succeeded is
kept for the next step of the same run, which then starts without a checkout; one in which a
command failed is thrown away. A lock on the directory tells live ones from those of dead workers.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.layers import LayerStore
from ci_platform.runner.limits import RunnerLimits
from ci_platform.runner.manifest import Manifest, scan, walk
from ci_platform.runner.overlays import Overlay, Overlays
from ci_platform.runner.trash import Trash
from ci_platform.runner.trees import TreeCache
from ci_platform.runner.upper import is_whiteout, scan_upper
from ci_platform.shell import CommandSpec

KEPT_MAX = 4  # workspaces kept for a next step
UIDS_MAX = 1000
_UID_LOCKS = Path("/run/sluice-uids")  # of the whole machine: two servers must not share a uid
FILES = "files"
OUTPUTS = "outputs"
CACHES = "caches"


@dataclass(frozen=True, slots=True)
class State:
    """What is in a workspace."""

    run_id: str
    commit: str
    base: tuple[str, ...]


@dataclass(slots=True)
class Workspace:
    name: str
    directory: Path  # holds FILES and OUTPUTS; closed to everyone but `uid`
    lock: int  # descriptor of the directory, locked
    root: int  # descriptor of FILES
    uid: int | None
    uid_lock: int | None
    caches: int | None = None  # descriptor of CACHES, while a command has some
    caches_bytes: int = 0  # in them, when the command began
    manifest: Manifest | None = None  # what is in it, if that is known without looking
    overlay: Overlay | None = None  # None: it is a copy

    @property
    def upper(self) -> int | None:
        """Descriptor of where changes lie, if not in `root`."""
        return self.overlay.upper if self.overlay else None

    def scan(self, limits: RunnerLimits) -> Manifest:
        """List what is in it, while nothing runs in it. Raises TooManyFiles."""
        if self.overlay is None:
            return scan(self.root, limits)
        return scan_upper(self.overlay.upper, self.root, self.overlay.below, limits)

    @property
    def files(self) -> Path:
        return self.directory / FILES

    @property
    def outputs(self) -> Path:
        return self.directory / OUTPUTS


class Workspaces:
    def __init__(
        self,
        jobs: Path,
        cache: TreeCache,
        layers: LayerStore,
        *,
        first_uid: int | None,
        overlays: Overlays | None = None,
        copied: Callable[[CommandSpec], bool] = lambda spec: False,
        limits: RunnerLimits,
    ) -> None:
        """`first_uid`: of the range that commands run under; None: under our own. `overlays`:
        None for workspaces that are copies; `copied`: whether that of a command has to be one."""
        self._jobs = jobs
        self._overlays = overlays
        self._copied = copied
        self._limits = limits
        self._cache = cache
        self._layers = layers
        self._first_uid = first_uid
        self._lock = threading.Lock()
        self._kept: dict[State, Workspace] = {}  # oldest first
        jobs.mkdir(parents=True, exist_ok=True)
        jobs.chmod(0o711)
        self._trash = Trash(jobs.with_name("trash"))
        self._sweep()

    def describe(self) -> str:
        """How checkouts come about here."""
        return self._overlays.describe() if self._overlays else "copies"

    def take(self, spec: CommandSpec) -> Workspace:
        """A workspace for this command, ready to run in. Give it back with keep or drop."""
        wanted = State(spec.run_id, spec.commit, tuple(spec.base))
        workspace, there = self._take_kept(wanted, copied=self._copied(spec))
        if workspace is None:
            workspace = self._new()
        try:
            if there is None:
                self._check_out(workspace, spec)
            missing = wanted.base[len(there.base) if there else 0 :]
            if missing:
                workspace.manifest = None
                self._layers.restore(workspace.root, missing)
            if spec.git_depth:
                workspace.manifest = None
                self._cache.history(
                    spec.repository_id, spec.commit, workspace.root, depth=spec.git_depth
                )
            if workspace.uid is not None and (there is None or missing or spec.git_depth):
                give_to(workspace.root, workspace.uid, listed=workspace.upper)
            _empty_file(workspace)
        except BaseException:
            self.drop(workspace)
            raise
        return workspace

    def _check_out(self, workspace: Workspace, spec: CommandSpec) -> None:
        """Fill a new workspace with the commit's tree."""
        overlays = None if self._copied(spec) else self._overlays
        if overlays is not None and overlays.possible():
            tree, below = self._cache.below(spec.repository_id, spec.commit, self._limits)
            try:
                found = overlays.mount(workspace.directory, tree, below, workspace.uid)
            except BaseException:
                os.close(below.root)
                raise
            if found is not None:
                os.close(workspace.root)
                workspace.root, workspace.overlay = found.root, found
                workspace.manifest = None if spec.base else below.manifest
                return
            os.close(below.root)
        self._cache.checkout(spec.repository_id, spec.commit, workspace.files)

    def listing(self, spec: CommandSpec) -> Mapping[str, str]:
        """The files of the command's commit, without its layers."""
        return self._cache.listing(spec.repository_id, spec.commit)

    def empty(self) -> Workspace:
        """A workspace with nothing in it, for trying out the sandbox itself."""
        workspace = self._new()
        _empty_file(workspace)
        return workspace

    def keep(self, workspace: Workspace, spec: CommandSpec, base: Sequence[str]) -> None:
        """Keep a workspace that now holds `base` for the next step of its run."""
        self._drop_caches(workspace)
        with self._lock:
            state = State(spec.run_id, spec.commit, tuple(base))
            surplus = [self._kept.pop(state)] if state in self._kept else []
            self._kept[state] = workspace
            while len(self._kept) > KEPT_MAX:
                surplus.append(self._kept.pop(next(iter(self._kept))))
        for old in surplus:
            self.drop(old)

    def drop(self, workspace: Workspace) -> None:
        os.close(workspace.root)
        if self._overlays is not None and workspace.overlay is not None:
            self._overlays.unmount(workspace.directory, workspace.overlay)
        if workspace.caches is not None:
            os.close(workspace.caches)
        try:
            self._trash.throw(workspace.directory, workspace.lock)
        finally:
            if workspace.uid_lock is not None:
                os.close(workspace.uid_lock)

    def _drop_caches(self, workspace: Workspace) -> None:
        if workspace.caches is not None:
            self._trash.throw(workspace.directory / CACHES, workspace.caches)
            workspace.caches, workspace.caches_bytes = None, 0

    @property
    def place(self) -> Path:
        """The directory of all of them."""
        return self._jobs

    def make_room(self) -> None:
        """Throw away what is only kept to be faster, and is not in use."""
        self._drop_kept()
        self._trash.settle()
        self._cache.clear()

    def close(self) -> None:
        self._drop_kept()
        self._trash.close()

    def _drop_kept(self) -> None:
        with self._lock:
            kept = list(self._kept.values())
            self._kept.clear()
        for workspace in kept:
            self.drop(workspace)

    def _take_kept(self, wanted: State, *, copied: bool) -> tuple[Workspace | None, State | None]:
        """The kept workspace of this run that already holds most of the base."""
        self._drop_dead()
        with self._lock:
            fitting = [
                state
                for state, kept in self._kept.items()
                if (state.run_id, state.commit) == (wanted.run_id, wanted.commit)
                and not (copied and kept.overlay)
                and wanted.base[: len(state.base)] == state.base
            ]
            if not fitting:
                return None, None
            best = max(fitting, key=lambda state: len(state.base))
            return self._kept.pop(best), best

    def _drop_dead(self) -> None:
        """Throw away what ended with its launcher process."""
        with self._lock:
            dead = [state for state, kept in self._kept.items() if not self._lives(kept)]
            workspaces = [self._kept.pop(state) for state in dead]
        for workspace in workspaces:
            self.drop(workspace)

    def _lives(self, workspace: Workspace) -> bool:
        overlays, overlay = self._overlays, workspace.overlay
        return overlay is None or overlays is None or overlays.lives(overlay)

    def _new(self) -> Workspace:
        uid_lock, uid = self._free_uid()
        try:
            while True:
                directory = Path(tempfile.mkdtemp(dir=self._jobs, prefix="job-"))
                lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if _locked(lock, directory):
                    break
                os.close(lock)  # another worker swept it before it was locked
            files = directory / FILES
            files.mkdir(mode=0o755)
            if uid is not None:
                _own(files, uid)
                _own(directory, uid)
            root = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            if uid_lock is not None:
                os.close(uid_lock)
            raise
        return Workspace(directory.name, directory, lock, root, uid, uid_lock)

    def _free_uid(self) -> tuple[int | None, int | None]:
        """A uid that no other command on this machine has, and the lock that says so."""
        if self._first_uid is None:
            return None, None
        _UID_LOCKS.mkdir(mode=0o700, exist_ok=True)
        for uid in range(self._first_uid, self._first_uid + UIDS_MAX):
            fd = os.open(_UID_LOCKS / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            return fd, uid
        raise RunnerUnavailable(f"all {UIDS_MAX} uids from {self._first_uid} on are in use")

    def _sweep(self) -> None:
        """Remove the workspaces of workers that died."""
        for directory in self._jobs.iterdir():
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            with suppress(FileNotFoundError):  # another worker swept it
                self._trash.throw(directory, fd)


def _own(path: Path, uid: int) -> None:
    try:
        os.chown(path, uid, uid)
    except OSError as error:
        raise RunnerUnavailable(
            f"commands cannot run under uid {uid} ({error.strerror}): the server is root of a user "
            "namespace without that uid. Start it as an ordinary user"
        ) from error


def _locked(fd: int, directory: Path) -> bool:
    """Lock a directory; False if it was removed in between."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        return os.stat(directory).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _empty_file(workspace: Workspace) -> None:
    """A fresh $CI_OUTPUT file. It lies outside the workspace and is no part of a layer."""
    workspace.outputs.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(workspace.outputs, flags, 0o600)
    try:
        if workspace.uid is not None:
            os.fchown(fd, workspace.uid, workspace.uid)
    finally:
        os.close(fd)


def give_to(root: int, uid: int, *, listed: int | None = None) -> None:
    """Hand everything to the command's uid, or only what is in the directory `listed` too.
    Nothing runs in the workspace yet."""
    for path, found, _ in walk(root if listed is None else listed):
        if found.st_uid != uid and not is_whiteout(found):
            os.chown(path, uid, uid, dir_fd=root, follow_symlinks=False)
