"""`sluice run`: the pipeline of a working tree, on this machine, with the server's own parts.

The tree goes into a throw-away repository in a throw-away deployment; engine, store, sandbox and
runner are the real ones, with a worker on a thread of this process. Called by main.py.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.prompt import Confirm

from ci_platform.app import Platform, open_platform, runner_of
from ci_platform.cli import terminal
from ci_platform.cli.client import Client, repo_path, run_path, segment
from ci_platform.cli.console import client_of, owner_name
from ci_platform.cli.guest import build_guest
from ci_platform.cli.watch import Watch, exit_code, open_gates
from ci_platform.config import read_config
from ci_platform.errors import InvalidRequest
from ci_platform.identity import console
from ci_platform.model import Json, WorkerId
from ci_platform.server.processes import worker_tools
from ci_platform.source import PIPELINE, translated
from ci_platform.worker import Worker
from git_store import FileEdit, Pusher

OWNER = "local"
SKIP = "ci.skip"  # as a push option: the commit alone starts nothing
CANCEL_SECONDS = 20  # for commands to end after Ctrl-C
TREE_BYTES_MAX = 512 << 20  # it is held in memory
INTERRUPTED = 130
USAGE = 2


@dataclass(frozen=True, slots=True)
class LocalRun:
    """What to run, and how."""

    directory: Path
    pipeline: str | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    approve: bool = False  # answer every gate with yes
    unsandboxed: bool = False


@dataclass(frozen=True, slots=True)
class WorkingTree:
    """The files as they are now: tracked, or new and not ignored."""

    top: Path
    branch: str
    author: str
    files: tuple[FileEdit, ...]
    left_out: tuple[str, ...]  # what is neither a file nor a link to one


def run(request: LocalRun) -> int:
    """Run it to its end, in this terminal; answers the exit code."""
    out = terminal.console()
    tree = working_tree(request.directory)
    for path in tree.left_out:
        out.print(f"left out, since it is no file: {path}", markup=False, style="dim")
    with tempfile.TemporaryDirectory(prefix="sluice-run-") as directory:
        given: dict[str, Json] = {"data": Path(directory), "url": "http://localhost"}
        if request.unsandboxed:
            given["command_runner"] = "unsandboxed"
        config = read_config(**given)
        build_guest(config.cache)
        platform = open_platform(config)
        try:
            with working(platform):
                return _run(request, tree, platform, out)
        finally:
            platform.close()


def _run(request: LocalRun, tree: WorkingTree, platform: Platform, out: Console) -> int:
    name = _commit(tree, platform)
    # Whoever started a run may not approve it; at one's own terminal that is the same person.
    approver = replace(console(owner_name()), id="approver")
    with client_of(platform) as starter, client_of(platform, acting_as=approver) as client:
        body: dict[str, Json] = {"ref": tree.branch, "params": dict(request.params)}
        if request.pipeline is not None:
            body["pipeline"] = request.pipeline
        run_id = starter.post(repo_path(name) + "/runs", body)["id"]
        watch = Watch(client, run_id, terminal.Ticker(out))
        try:
            return _follow(request, watch, client, out)
        except KeyboardInterrupt:
            out.print("cancelling; once more ends it at once", style="yellow")
            client.post(run_path(run_id) + "/cancel", {})
            with contextlib.suppress(TimeoutError):
                watch.until(seconds=CANCEL_SECONDS)
            return INTERRUPTED


def _follow(request: LocalRun, watch: Watch, client: Client, out: Console) -> int:
    answered: set[str] = set()
    while True:
        run = watch.until(
            stop=lambda run: any(gate not in answered for gate in open_gates(run)),
        )
        gates = [gate for gate in open_gates(run) if gate not in answered]
        if not gates:
            return exit_code(run)
        for gate in gates:
            decision = _decide(gate, request, out)
            if decision is None:
                client.post(run_path(watch.run_id) + "/cancel", {})
                out.print("nobody is here to answer: use --approve, or a terminal", style="yellow")
                return USAGE
            path = f"{run_path(watch.run_id)}/approvals/{segment(gate)}"
            client.post(path, {"decision": decision})
            answered.add(gate)


def _decide(gate: str, request: LocalRun, out: Console) -> str | None:
    if request.approve:
        return "approve"
    if not sys.stdin.isatty():
        return None
    yes = Confirm.ask(f"Approve “{gate}”?", console=out, default=False)
    return "approve" if yes else "reject"


@contextlib.contextmanager
def working(platform: Platform) -> Iterator[None]:
    """A worker on a thread, for as long as the block takes."""
    runner = runner_of(platform)
    stop = threading.Event()
    worker = Worker(worker_tools(platform, runner, WorkerId("local")))
    thread = threading.Thread(target=worker.run_forever, args=(stop,), name="worker")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        runner.close()


def _commit(tree: WorkingTree, platform: Platform) -> str:
    """Put the tree into a new repository; answers owner/name."""
    with translated():
        repository = platform.git.repositories.create(
            OWNER, _repository_name(tree.top.name), default_branch=tree.branch
        )
        platform.git.commit(
            repository.id,
            tree.files,
            branch=tree.branch,
            message="The working tree as it is",
            author=tree.author,
            pusher=Pusher(None, owner_name()),
            options=[SKIP],
        )
    return repository.full_name


def _repository_name(text: str) -> str:
    kept = "".join(char if char.isascii() and char.isalnum() else "-" for char in text)
    return kept.strip("-")[:60] or "tree"


def working_tree(directory: Path) -> WorkingTree:
    """Read the working tree that holds `directory`: the whole of it, or the directory alone if
    that has a pipeline of its own. Raises InvalidRequest."""
    top = directory.resolve()
    if not (top / PIPELINE).is_file():
        top = Path(_git(directory, "rev-parse", "--show-toplevel").strip())
    if not (top / PIPELINE).is_file():
        raise InvalidRequest(f"there is no {PIPELINE} in {top}")
    listing = _git(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    files, left_out, size = [], [], 0
    for name in sorted(set(filter(None, listing.split("\0")))):
        path = top / name
        if path.is_file():
            size += path.stat().st_size
            if size > TREE_BYTES_MAX:
                raise InvalidRequest(
                    f"the files in {top} are too large: the limit of `sluice run` is "
                    f"{TREE_BYTES_MAX:,} bytes that are not ignored"
                )
            executable = bool(path.stat().st_mode & 0o100)
            files.append(FileEdit(name, path.read_bytes(), executable))
        elif path.exists() or path.is_symlink():
            left_out.append(name)
    return WorkingTree(top, _branch(top), _author(top), tuple(files), tuple(left_out))


def _branch(top: Path) -> str:
    head = subprocess.run(
        ["git", "symbolic-ref", "--quiet", "--short", "HEAD"],
        cwd=top,
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() or "main"  # a detached head is on no branch


def _author(top: Path) -> str:
    def setting(name: str, otherwise: str) -> str:
        found = subprocess.run(
            ["git", "config", "--get", name], cwd=top, capture_output=True, text=True, check=False
        )
        return found.stdout.strip() or otherwise

    return f"{setting('user.name', owner_name())} <{setting('user.email', 'local@localhost')}>"


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidRequest(f"git cannot be run in {directory}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        detail = error.stderr.strip() or f"git {arguments[0]} failed"
        raise InvalidRequest(f"{directory}: {detail}") from error
    return done.stdout
