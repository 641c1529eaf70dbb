"""`sluice demo`: everything once, for real: a server, a push with git, a run, an approval.

Starts the server as its own process, as anyone would, and then only uses doors that anyone has: the
git client and the API. Unattended (`--auto`) it also approves and checks the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ci_platform.cli import terminal
from ci_platform.cli.client import Client, repo_path, run_path, segment
from ci_platform.cli.console import local_client, setup_link
from ci_platform.cli.guest import build_guest
from ci_platform.cli.watch import ENDED, Watch, exit_code, open_gates, step_key
from ci_platform.config import read_config
from ci_platform.errors import InternalError, InvalidRequest
from ci_platform.model import Json

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello"
LEFT_OUT = ("__pycache__", "build", "dist")
OWNER = "demo"
START_SECONDS_MAX = 120
STOP_SECONDS_MAX = 30
RUN_SECONDS_MAX = 300  # unattended: a demo that takes longer has failed
IDLE_SECONDS = 0.5
WORKERS = 2
PLATFORM_FAILED = 4


class DemoFailed(InternalError):
    """The demo did not get to its end."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A running server and the repository that was made on it."""

    directory: Path
    url: str
    repository: str
    pusher: str  # token: may push
    approver: Client
    out: Console


def run(directory: Path, *, auto: bool, port: int) -> int:
    """Show it. Answers the exit code: unattended, 0 only if the run passed."""
    out = terminal.console()
    if not EXAMPLE.is_dir():
        raise InvalidRequest(f"the example is not here: {EXAMPLE}; run the demo from a checkout")
    if shutil.which("git") is None:
        raise InvalidRequest("git is not installed")
    data = directory / "data"
    build_guest(read_config(data=data).cache)
    try:
        with _server(directory, data, port) as url, _demo(directory, data, url, out) as demo:
            return _show(demo, data, auto=auto)
    except KeyboardInterrupt:
        out.print("stopped", style="dim")
        return 0 if not auto else 130
    except DemoFailed as error:
        terminal.console(stderr=True).print(f"demo: {error.detail}", style="red", markup=False)
        return PLATFORM_FAILED


def _show(demo: Demo, data: Path, *, auto: bool) -> int:
    run_id = _push(demo)
    watch = Watch(demo.approver, run_id, terminal.Ticker(demo.out))
    run = watch.until(stop=lambda run: bool(open_gates(run)), seconds=RUN_SECONDS_MAX)
    if auto:
        for gate in open_gates(run):
            _say(demo.out, f"approving {gate} through the API, as somebody else")
            path = f"{run_path(run_id)}/approvals/{segment(gate)}"
            demo.approver.post(path, {"decision": "approve", "comment": "make demo AUTO=1"})
        run = watch.until(seconds=RUN_SECONDS_MAX)
        _summary(demo, run)
        return exit_code(run)
    if run["state"] not in ENDED:
        _invite(demo, data, run)
        run = watch.until()
    _say(demo.out, f"the server goes on at {demo.url} until Ctrl-C")
    while True:
        time.sleep(IDLE_SECONDS)


@contextlib.contextmanager
def _server(directory: Path, data: Path, port: int) -> Iterator[str]:
    """A server of its own process, ended with this one; yields its URL."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "server.log"
    command = [sys.executable, "-m", "ci_platform.cli", "--data", str(data), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(WORKERS)]
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, "--die-with", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            process_group=0,  # a Ctrl-C is ours to hear; we then end the server in order
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise DemoFailed(f"the server did not start: {_last_lines(log)} (all of it: {log})")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_lines(log: Path) -> str:
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


@contextlib.contextmanager
def _demo(directory: Path, data: Path, url: str, out: Console) -> Iterator[Demo]:
    """A new repository, a token that pushes and another that approves."""
    name = f"{OWNER}/hello-{time.strftime('%m%d-%H%M%S')}"
    with local_client(read_config(data=data)) as console:
        console.post("/api/v1/repos", {"owner": OWNER, "name": name.partition("/")[2]})
        pusher = _token(console, "demo pushes", "repo:write", name)
        approver = _token(console, "demo approves", "admin")
    _say(out, f"sluice serve        {url}")
    _say(out, f"sluice repo create  {name}")
    with Client.remote(url, approver) as client:
        yield Demo(directory, url, name, pusher, client, out)


def _token(console: Client, name: str, scope: str, repository: str | None = None) -> str:
    body: dict[str, Json] = {"name": name, "scopes": [scope], "days": 1}
    if repository is not None:
        body["repository"] = repository
    return str(console.post("/api/v1/tokens", body)["secret"])


def _push(demo: Demo) -> str:
    """Push the example with the git client; answers the id of the run it started."""
    with tempfile.TemporaryDirectory(prefix="sluice-demo-") as scratch:
        tree = Path(scratch) / "hello"
        shutil.copytree(
            EXAMPLE, tree, ignore=shutil.ignore_patterns("__pycache__", "build", "dist")
        )
        _git(tree, "init", "--quiet", "--initial-branch", "main")
        _git(tree, "add", ".")
        _git(tree, "commit", "--quiet", "--message", "Greet people politely")
        address = f"{demo.url}/{demo.repository}.git"
        _say(demo.out, f"git push            {address} main")
        remote = address.replace("://", f"://demo:{demo.pusher}@")
        _git(tree, "push", "--quiet", remote, "main")
    runs = demo.approver.get(repo_path(demo.repository) + "/runs")["runs"]
    if not runs:
        raise DemoFailed("the push started no run")
    return str(runs[0]["id"])


def _git(tree: Path, *arguments: str) -> None:
    """Run git as somebody without any settings; what it prints goes to the terminal."""
    person = ["-c", "user.name=Demo", "-c", "user.email=demo@localhost"]
    try:
        subprocess.run(["git", "-C", str(tree), *person, *arguments], check=True)
    except subprocess.CalledProcessError as error:
        raise DemoFailed(f"git {arguments[0]} failed with exit code {error.returncode}") from error


def _invite(demo: Demo, data: Path, run: Json) -> None:
    out = demo.out
    link = setup_link(read_config(data=data))
    out.print()
    _say(out, "The run waits for you. It is a few rows in a database now: no process, no memory.")
    _say(out, f"  its page   {run['url']}")
    _say(out, f"  sign in    {link or demo.url + '/sign-in'}")
    _say(out, "Approve it there; Ctrl-C stops everything.")
    out.print()


def _summary(demo: Demo, run: Json) -> None:
    out = demo.out
    out.print()
    state = terminal.state_text(run["state"], run["reason"])
    out.print(Text.assemble(("run       ", "bold"), f"#{run['number']} {run['url']} ", state))
    for step in run["steps"]:
        took = terminal.elapsed(step["started_at"], step["ended_at"])
        mark = terminal.state_text(step["state"])
        out.print(Text.assemble(f"          {step_key(step).label:24} {took:>9}  ", mark))
    woke = _wake_ms(demo.approver.get(run_path(run["id"]) + "/journal")["entries"])
    out.print(Text.assemble(("sandbox   ", "bold"), f"{woke} ms from claim to first step"))
    out.print(Text.assemble(("log       ", "bold"), f"{run['url']}, or: {_log_command(demo, run)}"))
    out.print(Text.assemble(("server    ", "bold"), str(demo.directory / "server.log")))


def _log_command(demo: Demo, run: Json) -> str:
    return f"sluice --data {demo.directory / 'data'} logs {run['id']}"


def _wake_ms(entries: list[Json]) -> int:
    """From the first claim of the run to its first step: sandbox, interpreter, author's code."""
    claimed = next(entry["at_ms"] for entry in entries if entry["kind"] == "run_claimed")
    began = next(entry["at_ms"] for entry in entries if entry["kind"] == "step_started")
    return int(began - claimed)


def _say(out: Console, text: str) -> None:
    out.print(text, style="cyan", markup=False)
