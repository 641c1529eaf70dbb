"""Directories that a command finds as an earlier run left them: those of pip, npm, cargo.

Restored by copy into the command's own workspace directory, bound below its home, and packed again
after it succeeded. A cache is a help and never a reason to fail: one that cannot be read is empty,
one that is too large is not kept, and both are said in the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.beneath import open_directory
from ci_platform.runner.command import Output
from ci_platform.runner.layers import LayerStore
from ci_platform.runner.limits import RunnerLimits, in_words
from ci_platform.runner.manifest import Manifest, TooManyFiles, compare, scan
from ci_platform.runner.trash import remove_tree
from ci_platform.runner.workspaces import CACHES, Workspace, give_to
from ci_platform.shell import CommandSpec

_EMPTY = Manifest({}, True, 0, 0)


@dataclass(frozen=True, slots=True)
class CacheDirs:
    """The caches of one command."""

    workspace: Workspace
    spec: CommandSpec
    layers: LayerStore
    limits: RunnerLimits
    output: Output

    def prepare(self) -> Mapping[str, Manifest]:
        """Make the directories; what is in each."""
        if not self.spec.cache_dirs:
            return {}
        top = self.workspace.directory / CACHES
        self._make(top)
        self.workspace.caches = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = {name: self._restore(top, name) for name in self.spec.cache_dirs}
        self.workspace.caches_bytes = sum(one.total_bytes for one in found.values())
        return found

    def grown(self, before: Mapping[str, Manifest]) -> int:
        """By how many bytes a command has made them larger, or smaller."""
        return sum(
            self._now(name, known).total_bytes - known.total_bytes for name, known in before.items()
        )

    def _now(self, name: str, known: Manifest) -> Manifest:
        root = self._open(name)
        try:
            return scan(root, self.limits)
        except TooManyFiles:  # it will not be kept, and counts as it was
            return known
        finally:
            os.close(root)

    def keep(self, before: Mapping[str, Manifest]) -> Mapping[str, str]:
        """Pack those that the command changed; name -> digest of what a later run shall find."""
        if not self.spec.trusted:
            return {}
        kept = {name: self._pack(name, known) for name, known in before.items()}
        return {name: digest for name, digest in kept.items() if digest is not None}

    def _restore(self, top: Path, name: str) -> Manifest:
        directory = top / name
        digest = self.spec.cached.get(name)
        self._make(directory)
        if digest is not None:
            try:
                return self._filled(name, [digest])
            except (RunnerUnavailable, TooManyFiles, OSError) as error:
                self._say(f"cache {name} is empty: {error}")
                remove_tree(top, name)
                self._make(directory)
        return self._filled(name, [])

    def _filled(self, name: str, digests: list[str]) -> Manifest:
        root = self._open(name)
        try:
            self.layers.restore(root, digests)
            if self.workspace.uid is not None:
                give_to(root, self.workspace.uid)
            return scan(root, self.limits)
        finally:
            os.close(root)

    def _pack(self, name: str, before: Manifest) -> str | None:
        root = self._open(name)
        try:
            after = scan(root, self.limits)
            if not compare(before, after):
                return self.spec.cached.get(name)
            if after.total_bytes > self.limits.cache_bytes:
                self._say(
                    f"cache {name} is not kept: it has {in_words(after.total_bytes)}; the limit is "
                    f"{in_words(self.limits.cache_bytes)} (SLUICE_COMMAND_CACHE_BYTES)"
                )
                return None
            return self.layers.save(root, compare(_EMPTY, after), after)
        except (TooManyFiles, OSError) as error:
            self._say(f"cache {name} is not kept: {error}")
            return None
        finally:
            os.close(root)

    def _open(self, name: str) -> int:
        assert self.workspace.caches is not None, "prepare made it"
        return open_directory(self.workspace.caches, name)

    def _make(self, directory: Path) -> None:
        directory.mkdir(mode=0o755)
        if self.workspace.uid is not None:
            os.chown(directory, self.workspace.uid, self.workspace.uid)

    def _say(self, line: str) -> None:
        self.output("note", f"{line}\n".encode())


def bad_directory(name: str, path: str) -> str | None:
    """What is wrong with a cache's name or path, if anything."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or len(name) > 50:
        return f"cache_dirs: {name[:60]!r} is not a name (letters, digits, '-' and '_')"
    parts = path.removeprefix("~/").split("/")
    if not path.startswith("~/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        return f"cache_dirs: {path[:100]!r} is not a directory below ~/"
    return None


def bound(spec: CommandSpec, home: str) -> Iterable[tuple[str, str]]:
    """Name and place inside the sandbox of each."""
    for name, path in spec.cache_dirs.items():
        yield name, f"{home}/{path.removeprefix('~/')}"
