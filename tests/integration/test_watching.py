"""Following a run while its server goes away and comes back: each entry once, none missing."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from ci_platform.cli.client import Client, repo_path
from tests.integration.test_serve import COMMAND, SECONDS, Serving, serve

pytestmark = pytest.mark.slow

PIPELINE = """
from pipelines import Pipeline

class CI(Pipeline):
    async def run(self, event, step):
        for n in range(5):
            await step.sh(f"say {n}", "for i in 1 2 3; do echo line $i; done")
            await step.wait_for_event(f"go {n}", type="go")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Follower:
    """A client of the server-sent events that comes back with the last id it saw."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = auth(token)
        self.seen: list[tuple[int, str]] = []
        self.connections = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self.ended.is_set():
            last = str(self.seen[-1][0]) if self.seen else "0"
            headers = {**self._headers, "Last-Event-ID": last}
            try:
                with httpx.stream("GET", self._url, headers=headers, timeout=5) as answer:
                    self.connections += answer.status_code == 200
                    self._read(answer)
            except httpx.HTTPError:
                time.sleep(0.05)

    def _read(self, answer: httpx.Response) -> None:
        kind, number = "", 0
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "id":
                number = int(value)
            elif not line and kind == "end":
                self.ended.set()
                return
            elif not line and kind:
                self.seen.append((number, kind))
                kind = ""


def wait_until(check: Any) -> None:
    end = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.02)


def started(server: Serving, port: int) -> tuple[str, str]:
    """A run that waits, and a token."""
    server.sluice("repo", "create", "me/app")
    token = server.sluice("token", "create", "--name", "t", "--scope", "admin")
    with Client.remote(f"http://127.0.0.1:{port}", token) as client:
        files = [{"path": ".ci/pipeline.py", "content": PIPELINE}]
        body = {"branch": "main", "message": "one", "changes": files}
        client.post(repo_path("me/app") + "/commits", body)
        return client.post(repo_path("me/app") + "/runs", {})["id"], token


def auth(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def send(url: str, token: str, run_id: str, payload: int) -> None:
    path = f"{url}/api/v1/runs/{run_id}/events/go"
    httpx.post(path, headers=auth(token), json=payload).raise_for_status()


def test_followers_outlast_a_restart_of_the_server_and_miss_and_repeat_nothing(
    tmp_path: Path,
) -> None:
    data, port = tmp_path / "data", free_port()
    url = f"http://127.0.0.1:{port}"
    with serve(data, "--port", str(port)) as server:
        run_id, token = started(server, port)
        path = f"{url}/api/v1/runs/{run_id}/events"
        all_of_it = Follower(path, token)
        some = Follower(f"{path}?type=step_passed&step=wait:go%200&step=wait:go%204", token)
        command = [*COMMAND, "--url", url]
        env = {"SLUICE_TOKEN": token, "PATH": "/usr/bin:/bin"}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        watching: Any = subprocess.Popen(
            [*command, "watch", run_id, "--json", "--after", "1"], env=env, **pipes
        )
        logs: Any = subprocess.Popen([*command, "logs", "--follow", run_id], env=env, **pipes)
        said, logged = watching.stdout.readline(), logs.stdout.readline()  # they are there
        wait_until(lambda: (all_of_it.seen or [(0, "")])[-1][1] == "run_suspended")
        send(url, token, run_id, 0)
        wait_until(lambda: all_of_it.seen[-1] >= (15, "run_suspended"))
    for restart in (1, 2):
        with serve(data, "--port", str(port)):
            for _ in range(2):
                send(url, token, run_id, restart)
            if restart == 2:
                assert all_of_it.ended.wait(SECONDS) and some.ended.wait(SECONDS)
                said, logged = said + watching.stdout.read(), logged + logs.stdout.read()
                problems = watching.communicate(timeout=SECONDS)[1]
                logs.communicate(timeout=SECONDS)
                journal = httpx.get(f"{url}/api/v1/runs/{run_id}/journal", headers=auth(token))
    assert (watching.returncode, logs.returncode) == (0, 0), problems
    expected = journal.json()["entries"]
    assert [one["seq"] for one in expected] == list(range(1, len(expected) + 1))
    assert all_of_it.seen == [(one["seq"], one["kind"]) for one in expected]
    assert all_of_it.connections >= 3
    assert [json.loads(line) for line in said.splitlines()] == expected[1:]
    ends = [one["key"]["name"] for one in expected if (one["seq"], one["kind"]) in some.seen]
    assert ends == ["go 0", "go 4"]
    for n in range(5):
        lines = re.findall(rf"say {n} │ line (\d)", logged)
        assert lines == ["1", "2", "3"], logged
