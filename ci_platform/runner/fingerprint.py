"""What the result of a memoised command depends on, as one digest.

The files are those of the commit with the base layers on top, known by their hashes without
checking them out. Pure but for the listings it is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from ci_platform.model import Json
from ci_platform.runner.globs import matcher
from ci_platform.runner.overlap import DIRECTORY, Listing, is_gone
from ci_platform.shell import CommandSpec

_VERSION = 1


def overlay(tree: Mapping[str, str], layers: Iterable[Listing]) -> Mapping[str, str]:
    """Path -> what it is, for all files and links of a tree with layers on top."""
    files = dict(tree)
    for layer in layers:
        gone = {*layer.deleted}
        gone |= {path for path, end in layer.written.items() if end != DIRECTORY}
        files = {path: end for path, end in files.items() if not is_gone(path, gone)}
        files |= {path: end for path, end in layer.written.items() if end != DIRECTORY}
    return files


def fingerprint(spec: CommandSpec, files: Mapping[str, str], runner: Mapping[str, str]) -> str:
    """The digest of command, runner and the files that the command names as its inputs."""
    cache = spec.cache or {}
    wanted = matcher(cache.get("inputs") or ())
    identity: Json = {
        "version": _VERSION,
        "script": spec.script,
        "shell": spec.shell,
        "cwd": spec.cwd,
        "env": cache.get("env") or {},
        "secrets": sorted(spec.secrets),
        "network": sorted(spec.network),
        "image": spec.image,
        "artifacts": sorted(spec.artifacts),
        "reports": sorted(spec.reports),
        "key": cache.get("key") or "",
        "runner": dict(runner),
        "files": sorted((path, end) for path, end in files.items() if wanted(path)),
    }
    if spec.labels:
        identity["labels"] = sorted(spec.labels)
    if cache.get("services"):
        identity["services"] = cache["services"]
    if spec.git_depth:
        identity["git"] = {"depth": spec.git_depth, "commit": spec.commit}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
