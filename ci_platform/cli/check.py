"""`sluice config check`: try each thing a server needs, and say what is missing and how to get it.

Tries the real parts, not their descriptions. Called by main.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import obstore

from ci_platform.app import Platform, open_platform, runner_of
from ci_platform.cli.guest import build_guest
from ci_platform.cli.terminal import duration
from ci_platform.config import PREFIX, Config
from ci_platform.errors import NotFound, SluiceError
from ci_platform.model import RepositoryId, SourceFiles
from ci_platform.runner import UnsandboxedRunner
from ci_platform.shell import CommandSpec
from ci_platform.source import PIPELINE

OTHERS = frozenset({"TOKEN", "PASSWORD"})  # variables that are no settings
PROBE = """
from pipelines import Pipeline, on_manual

class Probe(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step): ...
"""
NO_TREE = "0" * 40

Finding = tuple[str, bool, str]


def run(config: Config, environment: Mapping[str, str]) -> list[Finding]:
    """All findings: (what, whether it works, how or why not)."""
    found = [_unknown_settings(environment), _git()]
    try:
        platform = open_platform(config)
    except SluiceError as error:
        return [*found, ("database", False, error.detail)]
    try:
        found += _parts(platform)
    finally:
        platform.close()
    return found


def _parts(platform: Platform) -> Iterator[Finding]:
    config = platform.config
    backend = "PostgreSQL" if config.database_url else str(config.data / "sluice.db")
    yield _try("database", backend, lambda: str(platform.store.runs.counts()))
    where = "SLUICE_OBJECTS_URL" if config.objects_url else str(config.data / "objects")
    yield _try("objects", where, lambda: _objects(platform))
    yield _try("pipelines", "", lambda: _pipelines(platform))
    yield _try("commands", "", lambda: _commands(platform))


def _try(what: str, where: str, probe: Callable[[], str]) -> Finding:
    try:
        detail = probe()
    except (SluiceError, OSError, obstore.exceptions.BaseError) as error:
        return what, False, str(error)
    return what, True, where or detail


def _unknown_settings(environment: Mapping[str, str]) -> Finding:
    known = {name.upper() for name in Config.model_fields} | OTHERS
    given = sorted(name for name in environment if name.startswith(PREFIX))
    unknown = [name for name in given if name.removeprefix(PREFIX) not in known]
    if unknown:
        return "settings", False, f"there is no setting {', '.join(unknown)}"
    return "settings", True, f"{len(given)} from the environment"


def _git() -> Finding:
    path = shutil.which("git")
    return "git", path is not None, path or "not installed; needed by `sluice run` and `demo`"


def _objects(platform: Platform) -> str:
    name = f"probe/{os.getpid()}"
    obstore.put(platform.objects, name, b"probe")
    obstore.delete(platform.objects, name)
    return "written and removed"


def _pipelines(platform: Platform) -> str:
    build_guest(platform.config.cache)
    source = SourceFiles(RepositoryId("probe"), "0" * 40, {PIPELINE: PROBE}, "probe")
    described = platform.sandbox.describe(source)
    if described.error is not None:
        raise SluiceError(f"{described.error.type}: {described.error.message}")
    return "code runs in WebAssembly"


def _commands(platform: Platform) -> str:
    """Start a sandbox and look around in it; without one, run `true` on a tree without files."""
    spec = CommandSpec(
        repository_id="probe",
        run_id="probe",
        step="sh:probe",
        commit="probe",
        base=(),
        script="true",
    )
    with contextlib.closing(runner_of(platform, NoFiles())) as runner:
        obstacle = runner.obstacle()
        if obstacle is not None:
            raise SluiceError(obstacle)
        if not isinstance(runner, UnsandboxedRunner):
            found = runner.probe()
            if not found.works:
                raise SluiceError(found.detail)
            return "; ".join(f"{name}: {value}" for name, value in found.facts.items())
        result = runner.run(spec, output=lambda stream, data: None, stop=lambda: False)
    if result.exit_code != 0:
        raise SluiceError(result.detail or result.output_tail or f"exit code {result.exit_code}")
    return f"{platform.config.command_runner}, {duration(result.duration_ms / 1000)}"


class NoFiles:
    """ports.Trees of one tree, which is empty."""

    def export(self, repository_id: str, commit: str, into: Path) -> str:
        return NO_TREE

    def history(self, repository_id: str, commit: str, into: Path, *, depth: int) -> None:
        raise NotFound(f"{commit} has no history: it is a tree without files")
