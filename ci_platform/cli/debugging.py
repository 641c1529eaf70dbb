"""A step's command once more, on this machine: its workspace rebuilt, its environment but secrets.

Everything comes through the API, so it works against any deployment. What is done in the workspace
is thrown away; the run does not hear of it. Called by debug.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import LocalStore

from ci_platform.cli.client import Client, repo_path, run_path, segment
from ci_platform.errors import InvalidRequest, RunnerUnavailable
from ci_platform.model import Json
from ci_platform.runner import SandboxRunner
from ci_platform.runner.terminal import SHELL, Terminal
from ci_platform.shell import CommandSpec

if TYPE_CHECKING:
    from ci_platform.runner import RunnerLimits

DAY_MS = 86_400_000  # a shell may be open for so long
DOWNLOAD_BYTES_MAX = 20 << 30  # of one layer or checkout
_SCRIPT = "step.sh"  # below the home directory: what the step ran

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    run_id: str
    step: str
    command: str | None = None  # None: an interactive shell
    keep: Path | None = None  # a new directory for the workspace as it is at the end
    tools: Sequence[Path] = ()  # directories the sandbox may read, as the server's commands do


@dataclass(frozen=True, slots=True)
class Downloaded:
    """ports.Trees of one commit, as an archive that was downloaded."""

    archive: Path

    def export(self, repository_id: str, commit: str, into: Path) -> str:
        with tarfile.open(self.archive, "r:gz") as archive:
            for member in archive:
                top, _, path = member.name.partition("/")
                if path:
                    archive.extract(member.replace(name=path, deep=False), into, filter="tar")
        return commit

    def history(self, repository_id: str, commit: str, into: Path, *, depth: int) -> None:
        raise RunnerUnavailable("an archive holds no history")


def debug(client: Client, request: Request, *, say: Say, limits: RunnerLimits | None = None) -> str:
    """Rebuild the workspace and go in. Returns how that ended, in words: `exited with code 1`."""
    if request.keep is not None and request.keep.exists():
        raise InvalidRequest(f"{request.keep} is there already", field="--keep")
    path = run_path(request.run_id)
    found = client.get(f"{path}/commands/{segment(request.step)}")
    _introduce(found, say)
    with tempfile.TemporaryDirectory(prefix="sluice-debug-") as name:
        directory = Path(name)
        spec = _again(found, request.command)
        runner = _runner(client, path, found, directory, request, limits)
        terminal = None if request.command is not None else Terminal(0, 1)
        try:
            return runner.try_out(
                spec,
                output=_show,
                terminal=terminal,
                timeout_ms=DAY_MS,
                look=lambda root: _keep(root, request.keep, say),
            )
        finally:
            runner.close()
            if terminal is not None:
                terminal.close()


def _introduce(found: Mapping[str, Json], say: Say) -> None:
    spec = found["spec"]
    say(f"{found['step']} of run #{found['number']} of {found['repository']}: {found['state']}")
    if found["error"]:
        say(f"  {found['error']}")
    elif found["exit_code"] is not None:
        say(f"  exited with code {found['exit_code']}")
    count = len(spec["base"])
    below = "no changes" if not count else f"the changes of {count} step{'s' if count > 1 else ''}"
    say(f"  at commit {spec['commit'][:12]} with {below} before it")
    if spec["network"]:
        say("  without its network")
    if found["secrets"]:
        say(f"  without its secrets: {', '.join(found['secrets'])}")
    if spec["services"]:
        say(f"  with its services: {', '.join(one['name'] for one in spec['services'])}")
    say(f"what it ran is in ~/{_SCRIPT}:")
    for line in spec["script"].strip().splitlines():
        say(f"  {line}")


def _again(found: Mapping[str, Json], command: str | None) -> CommandSpec:
    """The step's command with another script. What it did is dropped, as then."""
    spec = CommandSpec(**found["spec"])
    script = f'printf "%s\\n" {shlex.quote(spec.script)} > "$HOME/{_SCRIPT}"\n'
    script += SHELL if command is None else command
    mine = {"TERM": os.environ.get("TERM", "dumb")}
    mine["PS1"] = f"({found['step']}) \\w \\$ "
    alone = replace(spec, services=[_without(one) for one in spec.services], network=())
    return replace(
        alone,
        script=script,
        env={**mine, **spec.env},
        secrets=(),
        cache_dirs={},
        cache=None,
        git_depth=0,
    )


def _without(service: Mapping[str, Json]) -> Mapping[str, Json]:
    """A service as far as it can be had here."""
    return {**service, "command": {**service["command"], "secrets": (), "network": ()}}


def _runner(
    client: Client,
    path: str,
    found: Mapping[str, Json],
    directory: Path,
    request: Request,
    limits: RunnerLimits | None,
) -> SandboxRunner:
    """A runner over what is downloaded: the commit's files, and the layers on top."""
    spec = found["spec"]
    archive = directory / "checkout.tar.gz"
    source = f"{repo_path(found['repository'])}/archive/{spec['commit']}.tar.gz"
    client.download(source, archive, bytes_max=DOWNLOAD_BYTES_MAX)
    layers = directory / "objects" / "layers"
    layers.mkdir(parents=True)
    below = [*spec["base"], *(one for each in spec["services"] for one in each["command"]["base"])]
    for digest in dict.fromkeys(below):
        source = f"{path}/layers/{segment(digest)}"
        client.download(source, layers / Path(digest).name, bytes_max=DOWNLOAD_BYTES_MAX)
    return SandboxRunner(
        trees=Downloaded(archive),
        objects=LocalStore(directory / "objects"),
        work_dir=directory / "work",
        limits=limits,
        extra_ro=list(request.tools) or None,
    )


def _keep(root: int, keep: Path | None, say: Say) -> None:
    if keep is not None:
        shutil.copytree(f"/proc/self/fd/{root}", keep, symlinks=True)
        say(f"the workspace is kept in {keep}")


def _show(stream: str, data: bytes) -> None:
    fd = 1 if stream == "stdout" else 2
    while data:
        data = data[os.write(fd, data) :]
