"""Artifacts: files of a workspace kept for people, as immutable objects `artifacts/<sha256>`.

Collected after the command has ended, so that nothing changes them meanwhile. Which run they belong
to is in its journal; here they are only contents.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore

from ci_platform.durable import sync
from ci_platform.errors import NotFound, RunnerUnavailable, StoreUnavailable
from ci_platform.model import Json
from ci_platform.runner.beneath import open_file
from ci_platform.runner.command import Output
from ci_platform.runner.globs import matcher
from ci_platform.runner.layers import layer_path
from ci_platform.runner.limits import Excess, RunnerLimits, over_artifact, over_artifacts
from ci_platform.runner.manifest import Manifest
from ci_platform.shell import CommandSpec

_COPY_BYTES = 1 << 20


class TooManyArtifacts(Exception):
    """What a command wants kept is over a limit."""

    def __init__(self, excess: Excess) -> None:
        super().__init__(excess.detail)
        self.excess = excess


@dataclass(frozen=True, slots=True)
class Collector:
    """Keeps what a command's patterns name."""

    objects: ObjectStore
    scratch: Path
    limits: RunnerLimits

    def collect(
        self, root: int, after: Manifest, spec: CommandSpec, output: Output, *, failed: bool
    ) -> Sequence[Json]:
        """Store the files; path, size, sha256 and whether it is a report, of each. Of a command
        that failed, the reports only. Raises TooManyArtifacts, OSError, RunnerUnavailable."""
        artifacts = () if failed else spec.artifacts
        is_artifact, is_report = matcher(artifacts), matcher(spec.reports)
        paths = [path for path, mark in after.marks.items() if stat.S_ISREG(mark.mode)]
        for what, patterns in (("artifacts", artifacts), ("reports", spec.reports)):
            for pattern in patterns:
                if not any(map(matcher([pattern]), paths)):
                    output("note", f"{what}: nothing matches {pattern}\n".encode())
        wanted = sorted(path for path in paths if is_artifact(path) or is_report(path))
        named = [path for path in wanted if _is_text(path)]
        if len(named) < len(wanted):
            output("note", b"artifacts: files whose name is not UTF-8 are left out\n")
        self._check(named, after)
        return [self._kept(root, path, report=is_report(path)) for path in named]

    def _check(self, paths: Sequence[str], after: Manifest) -> None:
        if len(paths) > self.limits.artifacts:
            raise TooManyArtifacts(over_artifacts(len(paths), self.limits))
        size = sum(after.marks[path].size for path in paths)
        if size > self.limits.artifact_bytes:
            raise TooManyArtifacts(over_artifact(size, self.limits))

    def _kept(self, root: int, path: str, *, report: bool) -> Json:
        found = hashlib.sha256()
        with (
            os.fdopen(open_file(root, path), "rb") as content,
            tempfile.NamedTemporaryFile(dir=self.scratch, prefix="artifact-") as copy,
        ):
            while data := content.read(_COPY_BYTES):
                found.update(data)
                copy.write(data)
            copy.flush()
            size, digest = copy.tell(), found.hexdigest()
            try:
                obstore.put(self.objects, artifact_path(digest), Path(copy.name))
            except (BaseError, OSError) as error:
                raise RunnerUnavailable(f"artifact {path} cannot be stored: {error}") from error
        if isinstance(self.objects, LocalStore):
            sync(Path(str(self.objects.prefix or "/")) / artifact_path(digest))
        return {"path": path, "size": size, "sha256": digest, "report": report}


class StoredArtifacts:
    """ports.Artifacts over an object store."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def read(self, sha256: str) -> Iterator[bytes]:
        return self._read(artifact_path(sha256), f"artifact {sha256}")

    def layer(self, digest: str) -> Iterator[bytes]:
        return self._read(layer_path(digest), f"layer {digest}")

    def _read(self, path: str, what: str) -> Iterator[bytes]:
        try:
            found = obstore.get(self._objects, path)
        except FileNotFoundError:
            raise NotFound(f"{what} is not stored any more") from None
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"{what} cannot be read: {error}") from error
        pieces = cast(Iterator[memoryview], iter(found.stream(min_chunk_size=_COPY_BYTES)))
        return (bytes(piece) for piece in pieces)


def artifact_path(digest: str) -> str:
    return f"artifacts/{digest}"


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
