"""A command from checkout to layer, the same for every runner.

Each runner only says how to start a process in a workspace. The workspace's changes are kept if
and only if the command's exit code is 0, and are in the object store before the result is told.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from obstore.store import ObjectStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.model import Json
from ci_platform.runner.artifacts import Collector, TooManyArtifacts
from ci_platform.runner.beneath import open_directory, open_file
from ci_platform.runner.cache_dirs import CacheDirs, bad_directory
from ci_platform.runner.command import Ending, Output, Process, see_through
from ci_platform.runner.fingerprint import fingerprint, overlay
from ci_platform.runner.layers import LayerStore
from ci_platform.runner.limits import (
    BASE_LAYERS_MAX,
    ENV_BYTES_MAX,
    ENV_VARIABLES_MAX,
    SCRIPT_BYTES_MAX,
    Excess,
    RunnerLimits,
    bad_outputs,
    over_disk,
    over_memory,
    short_of_disk,
    was_cancelled,
)
from ci_platform.runner.manifest import (
    Manifest,
    TooManyFiles,
    compare,
    wait_for_tick,
    without,
)
from ci_platform.runner.outputs import BadOutputs, parse
from ci_platform.runner.overlap import overlap
from ci_platform.runner.trees import GIT, TreeCache
from ci_platform.runner.watch import Disk
from ci_platform.runner.workspaces import Workspace, Workspaces
from ci_platform.shell import CommandResult, CommandSpec, Trees

SHELLS = {
    "sh": ("/bin/sh", "-e"),
    "bash": ("/bin/bash", "--noprofile", "--norc", "-eo", "pipefail"),
}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Start = Callable[[CommandSpec, Workspace, Manifest], AbstractContextManager[Process]]


class Execution:
    """Runs commands of any runner. Safe to use from many threads."""

    def __init__(
        self,
        workspaces: Workspaces,
        layers: LayerStore,
        artifacts: Collector,
        limits: RunnerLimits,
    ) -> None:
        self._workspaces = workspaces
        self._artifacts = artifacts
        self._layers = layers
        self._limits = limits

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Output,
        stop: Callable[[], bool],
        start: Start,
        refused: Excess | None = None,
    ) -> CommandResult:
        """`refused`: why this runner will not take the command."""
        began = time.monotonic()

        def took(result: CommandResult) -> CommandResult:
            return replace(result, duration_ms=int((time.monotonic() - began) * 1000))

        problem = refused or refusal(spec)
        if problem is not None:
            return took(_ended(problem, output))
        if stop():
            return took(_ended(was_cancelled(), output))
        workspace = self._take(spec)
        kept = False
        try:
            result, kept = self._run_in(workspace, spec, output=output, stop=stop, start=start)
        finally:
            if not kept:
                self._workspaces.drop(workspace)
        return took(result)

    def serve(
        self,
        spec: CommandSpec,
        *,
        output: Output,
        stop: Callable[[], bool],
        start: Start,
        refused: Excess | None,
        timeout_ms: int,
        look: Callable[[int], None] = lambda root: None,
    ) -> str:
        """Run a command beside others: in a workspace of its own, of which nothing is kept.
        Returns how it ended, in words: `exited with code 1`. `look` gets the workspace then."""
        problem = refused or refusal(spec)
        if problem is not None:
            return f"cannot run: {problem.detail}"
        workspace = self._take(replace(spec, run_id=f"{spec.run_id} {spec.step}"))
        try:
            if not _is_directory(workspace.root, spec.cwd):
                return f"cannot run: cwd {spec.cwd!r} is not a directory in the workspace."
            before = workspace.manifest or workspace.scan(self._limits)
            with start(spec, workspace, before) as process:
                ending = see_through(
                    process, output=output, stop=stop, limits=self._limits, timeout_ms=timeout_ms
                )
            look(workspace.root)
        except TooManyFiles as error:
            return f"cannot run: {error}"
        finally:
            self._workspaces.drop(workspace)
        excess = ending.excess or self._late_excess(ending)
        if excess is not None:
            return f"was ended: {excess.detail}"
        return f"exited with code {_shell_code(ending.exit.code)}"

    def obstacle(self) -> str | None:
        """Caches are given up before commands have to wait."""
        floor, place = self._limits.free_bytes, self._workspaces.place
        if free_bytes(place) >= floor:
            return None
        self._workspaces.make_room()
        free = free_bytes(place)
        return None if free >= floor else short_of_disk(free, self._limits)

    def collision(self, layer: str, other: str) -> str | None:
        return overlap(self._layers.listing(layer), self._layers.listing(other))

    def fingerprint(self, spec: CommandSpec, runner: Mapping[str, str]) -> str:
        try:
            tree = self._workspaces.listing(spec)
        except OSError as error:
            raise RunnerUnavailable(f"the commit's files cannot be read: {error}") from error
        files = overlay(tree, (self._layers.listing(digest) for digest in spec.base))
        return fingerprint(spec, files, runner)

    def _take(self, spec: CommandSpec) -> Workspace:
        try:
            return self._workspaces.take(spec)
        except OSError as error:
            raise RunnerUnavailable(f"the workspace cannot be prepared: {error}") from error

    def _run_in(
        self,
        workspace: Workspace,
        spec: CommandSpec,
        *,
        output: Output,
        stop: Callable[[], bool],
        start: Start,
    ) -> tuple[CommandResult, bool]:
        """The result, and whether the workspace was kept."""
        if not _is_directory(workspace.root, spec.cwd):
            detail = f"cwd {spec.cwd!r} is not a directory in the workspace."
            return _ended(Excess("invalid", detail), output), False
        try:
            before = workspace.manifest or workspace.scan(self._limits)
        except TooManyFiles as error:
            return _ended(Excess("files", str(error)), output), False
        if stop():
            return _ended(was_cancelled(), output), False
        caches = CacheDirs(workspace, spec, self._layers, self._limits, output)
        cached = caches.prepare()
        with start(spec, workspace, before) as process:
            ending = see_through(
                process,
                output=output,
                stop=stop,
                limits=self._limits,
                timeout_ms=spec.timeout_ms,
            )
        excess = ending.excess or self._late_excess(ending)
        if excess is None:
            try:
                beside = caches.grown(cached)
                result, fit = self._finish(workspace, spec, before, ending, output, beside)
                if result.exit_code == 0:
                    result = replace(result, caches=caches.keep(cached))
                if fit:
                    self._keep(workspace, spec, result)
                return result, fit
            except _Refused as refused:
                excess = refused.excess
            except OSError as error:
                raise RunnerUnavailable(f"the workspace cannot be read: {error}") from error
        if ending.excess is None:
            output("note", f"{excess.detail}\n".encode())
        return _result(ending, excess), False

    def _late_excess(self, ending: Ending) -> Excess | None:
        """A limit that killed the command before anyone looked."""
        if ending.exit.code != 0 and ending.exit.rss_bytes > self._limits.memory_bytes:
            return over_memory(ending.exit.rss_bytes, self._limits)
        return None

    def _finish(
        self,
        workspace: Workspace,
        spec: CommandSpec,
        before: Manifest,
        ending: Ending,
        output: Output,
        beside: int,
    ) -> tuple[CommandResult, bool]:
        """Judge what the command left behind; keep its changes if it succeeded. `beside`: bytes by
        which its caches have grown."""
        try:
            after = workspace.scan(self._limits)
        except TooManyFiles as error:
            raise _Refused(Excess("files", str(error))) from error
        grown = after.total_bytes - before.total_bytes + beside
        if grown >= self._limits.disk_bytes:
            raise _Refused(over_disk(grown, self._limits))
        result = _result(ending, None)
        if ending.exit.code != 0:
            result = replace(result, outputs=self._outputs(workspace, lenient=True))
            return replace(result, artifacts=self._reports(workspace, after, spec, output)), False
        outputs = self._outputs(workspace)
        try:
            artifacts = self._artifacts.collect(workspace.root, after, spec, output, failed=False)
        except TooManyArtifacts as error:
            raise _Refused(error.excess) from error
        changes = compare(before, after)
        if spec.git_depth:
            changes = without(changes, GIT)
        layer = self._layers.save(workspace.root, changes, after) if changes else None
        if after.plain:
            workspace.manifest = after  # nothing runs in it until the next command
        result = replace(result, outputs=outputs, layer=layer, artifacts=artifacts)
        return result, after.plain and not spec.git_depth  # its .git is of this command only

    def _reports(
        self, workspace: Workspace, after: Manifest, spec: CommandSpec, output: Output
    ) -> Sequence[Json]:
        """The reports of a command that has failed: they add nothing to its failure."""
        try:
            return self._artifacts.collect(workspace.root, after, spec, output, failed=True)
        except TooManyArtifacts as error:
            output("note", f"{error.excess.detail}\n".encode())
            return ()

    def _keep(self, workspace: Workspace, spec: CommandSpec, result: CommandResult) -> None:
        base = (*spec.base, result.layer) if result.layer else tuple(spec.base)
        self._workspaces.keep(workspace, spec, base)

    def _outputs(self, workspace: Workspace, *, lenient: bool = False) -> Mapping[str, str]:
        directory = open_directory(workspace.lock, ".")
        try:
            with os.fdopen(open_file(directory, workspace.outputs.name), "rb") as file:
                return parse(file.read(self._limits.outputs_bytes + 1), self._limits)
        except BadOutputs as error:
            if lenient:
                return {}
            raise _Refused(bad_outputs(str(error))) from error
        finally:
            os.close(directory)


def copying(
    work_dir: Path,
    *,
    trees: Trees,
    objects: ObjectStore,
    first_uid: int | None,
    limits: RunnerLimits,
) -> tuple[Workspaces, Execution]:
    """The parts of a runner whose workspaces are copies in a directory."""
    scratch = work_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    layers = LayerStore(objects, scratch)
    cache = TreeCache(trees, work_dir / "trees")
    workspaces = Workspaces(work_dir / "jobs", cache, layers, first_uid=first_uid, limits=limits)
    return workspaces, Execution(workspaces, layers, Collector(objects, scratch, limits), limits)


def watched(workspace: Workspace, before: Manifest, limits: RunnerLimits) -> Disk:
    """The watch over how much a workspace grows. From now on, a change in it can be told from what
    was there `before`."""
    wait_for_tick(before)
    return Disk(
        workspace.root,
        upper=workspace.upper,
        beside=workspace.outputs,
        caches=workspace.caches,
        before=before,
        caches_bytes=workspace.caches_bytes,
        limits=limits,
    )


class _Refused(Exception):
    def __init__(self, excess: Excess) -> None:
        super().__init__(excess.detail)
        self.excess = excess


def refusal(spec: CommandSpec) -> Excess | None:
    """What is wrong with a command that no runner could run."""
    if spec.shell not in SHELLS:
        return _invalid(f"shell {spec.shell!r} is not one of {', '.join(sorted(SHELLS))}")
    script_bytes = len(spec.script.encode(errors="surrogateescape"))
    if script_bytes > SCRIPT_BYTES_MAX:
        return _invalid(f"script has {script_bytes} bytes; the limit is {SCRIPT_BYTES_MAX}")
    if "\0" in spec.script:
        return _invalid("script holds a null character")
    if len(spec.base) > BASE_LAYERS_MAX:
        return _invalid(f"base has {len(spec.base)} layers; the limit is {BASE_LAYERS_MAX}")
    for digest in spec.base:
        if _DIGEST.fullmatch(digest) is None:
            return _invalid(f"base: {digest[:100]!r} is not a layer's digest")
    if spec.timeout_ms <= 0:
        return _invalid("timeout is not above zero")
    parts = spec.cwd.split("/")
    if spec.cwd.startswith("/") or ".." in parts or "\0" in spec.cwd:
        return _invalid(f"cwd {spec.cwd!r} is not a path inside the workspace")
    bad = (bad_directory(name, path) for name, path in spec.cache_dirs.items())
    problem = next((one for one in bad if one is not None), None)
    return _bad_environment(spec.env) if problem is None else _invalid(problem)


def _bad_environment(env: Mapping[str, str]) -> Excess | None:
    if len(env) > ENV_VARIABLES_MAX:
        return _invalid(f"env has {len(env)} variables; the limit is {ENV_VARIABLES_MAX}")
    for name, value in env.items():
        if _VARIABLE.fullmatch(name) is None:
            return _invalid(f"env: {name[:100]!r} is not a variable's name")
        if "\0" in value:
            return _invalid(f"env: the value of {name} holds a null character")
    size = sum(len(name) + len(value.encode(errors="replace")) for name, value in env.items())
    if size > ENV_BYTES_MAX:
        return _invalid(f"env has {size} bytes; the limit is {ENV_BYTES_MAX}")
    return None


def _invalid(problem: str) -> Excess:
    return Excess("invalid", f"The command cannot be run: {problem}.")


def free_bytes(place: Path) -> int:
    """What an ordinary user may still write to the disk that holds a directory."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _is_directory(root: int, path: str) -> bool:
    try:
        os.close(open_directory(root, path))
    except OSError:
        return False
    return True


def _ended(excess: Excess, output: Output) -> CommandResult:
    """The result of a command that was never started."""
    output("note", f"{excess.detail}\n".encode())
    return CommandResult(
        exit_code=None,
        ended=excess.limit,
        detail=excess.detail,
        outputs={},
        output_tail="",
        layer=None,
        duration_ms=0,
    )


def _result(ending: Ending, excess: Excess | None) -> CommandResult:
    return CommandResult(
        exit_code=None if excess else _shell_code(ending.exit.code),
        ended=excess.limit if excess else None,
        detail=excess.detail if excess else "",
        outputs={},
        output_tail=ending.tail,
        layer=None,
        duration_ms=0,
    )


def _shell_code(code: int) -> int:
    """An exit code as shells tell it: 128 + N for signal N."""
    return code if code >= 0 else 128 - code
