"""`sluice serve` as people start it: real processes, real signals, a real git client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from ci_platform.cli.client import Client, repo_path
from ci_platform.cli.watch import Silent, Watch

pytestmark = pytest.mark.slow

SECONDS = 60
COMMAND = [sys.executable, "-m", "ci_platform.cli"]
PIPELINE = """
from pipelines import Pipeline, on_push

class CI(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
        said = await step.sh("say", "echo hello; pwd")
        return await step.do("end", lambda: said.exit_code)
"""


@dataclass(slots=True)
class Serving:
    data: Path
    process: subprocess.Popen[str]
    url: str

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children())

    def child(self, word: str) -> psutil.Process:
        (found,) = [one for one in self.children() if one.name() == f"sluice-{word}"]
        return found

    def sluice(self, *arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, "--data", str(self.data), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS,
        )
        return done.stdout.strip()

    def errors(self) -> str:
        return (self.data.parent / "errors").read_text(encoding="utf-8")

    def has(self, child: str, *, other_than: int) -> psutil.Process:
        """Wait until the supervisor has replaced a child."""
        for _ in range(SECONDS * 20):
            with contextlib.suppress(ValueError, psutil.NoSuchProcess):
                found = self.child(child)
                if found.pid != other_than:
                    return found
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                raise AssertionError(f"the server ended: {self.errors()}")
        raise AssertionError(f"{child} was not replaced: {self.errors()}")


@contextlib.contextmanager
def serve(data: Path, *options: str) -> Iterator[Serving]:
    with (data.parent / "errors").open("a") as errors:
        process = subprocess.Popen(
            [*COMMAND, "--data", str(data), "serve", "--port", "0", "--workers", "1", *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        serving = Serving(data, process, line.strip())
        assert serving.url.startswith("http://127.0.0.1:"), serving.errors()
        yield serving
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def test_a_push_with_git_runs_and_is_seen_from_everywhere(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        assert httpx.get(f"{server.url}/healthz").text == "ok\n"
        assert httpx.get(f"{server.url}/readyz").text == "ready\n"
        server.sluice("repo", "create", "me/app")
        token = server.sluice("token", "create", "--name", "t", "--scope", "admin")
        said = push(tmp_path / "tree", server, token)
        assert f"remote: sluice: run #1 started, {server.url}/runs/run_" in said
        with Client.remote(server.url, token) as client:
            (run,) = client.get(repo_path("me/app") + "/runs")["runs"]
            ended = Watch(client, run["id"], Silent()).until(seconds=SECONDS)
        assert (ended["state"], ended["output"]) == ("passed", 0)
        assert "hello" in server.sluice("logs", run["id"], "--step", "sh:say")
        assert "passed" in server.sluice("runs", "me/app")
        assert "/workspace" in server.sluice("logs", "--follow", run["id"])
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'sluice_runs{state="running"} 0.0' in metrics
        assert 'area="git",status="2xx"' in metrics


def push(tree: Path, server: Serving, token: str) -> str:
    (tree / ".ci").mkdir(parents=True)
    (tree / ".ci" / "pipeline.py").write_text(PIPELINE)
    remote = server.url.replace("://", f"://me:{token}@") + "/me/app.git"
    person = ["-c", "user.name=Me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", *person, *arguments], cwd=tree, check=True)
    done = subprocess.run(
        ["git", "push", remote, "main"], cwd=tree, check=True, capture_output=True, text=True
    )
    return done.stderr


def test_a_killed_worker_and_a_killed_web_process_are_replaced(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        worker = server.has("worker-1", other_than=0)
        worker.kill()
        server.has("worker-1", other_than=worker.pid)
        web = server.child("web")
        web.kill()
        # The socket is the supervisor's: this waits for the new process instead of being refused.
        assert httpx.get(f"{server.url}/readyz", timeout=SECONDS).text == "ready\n"
        assert server.child("web").pid != web.pid
    assert "SIGKILL and is replaced" in server.errors()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with serve(tmp_path / "data") as server:
        server.has("worker-1", other_than=0)
        everyone = family(psutil.Process(server.process.pid))
        server.process.send_signal(number)
        out, _ = server.process.communicate(timeout=SECONDS)
        assert server.process.returncode == 0
        assert out == ""  # the line with the URL was the only one
    psutil.wait_procs(everyone, timeout=SECONDS)
    assert not any(one.is_running() for one in everyone)


def test_a_killed_supervisor_leaves_no_process_behind_and_its_address_free(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        worker = server.has("worker-1", other_than=0)
        for _ in range(SECONDS * 20):  # until the worker has its sandbox process
            if worker.children():
                break
            psutil.wait_procs([worker], timeout=0.05)
        everyone = family(psutil.Process(server.process.pid))
        assert len(everyone) >= 4
        os.kill(server.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(everyone, timeout=SECONDS)
        assert alive == []
    port = server.url.rpartition(":")[2]
    with serve(tmp_path / "data", "--port", port) as again:
        assert again.url == server.url


def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        second = subprocess.run(
            [*COMMAND, "--data", str(tmp_path / "data"), "serve", "--port", "0"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert second.returncode == 2
    assert f"in use by another `sluice serve`: pid {server.process.pid} {server.url}" in (
        second.stderr
    )


def test_the_console_is_no_door_of_the_network(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server:
        assert httpx.get(f"{server.url}/api/v1/repos").status_code == 401
        link = server.sluice("user", "link")
        assert link.startswith(server.url)
        assert httpx.get(link).status_code == 200
