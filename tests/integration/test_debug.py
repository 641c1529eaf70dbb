"""`sluice debug`: the workspace of a step again, in its sandbox, by pipe and by terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ci_platform.errors import Forbidden, InvalidRequest, NotFound, StepNotFound
from ci_platform.identity import console
from ci_platform.model import Actor, Role, RunId
from ci_platform.step_commands import StepCommands
from tests.deployment import OWNER, Deployment, deployed

PIPELINE = """
from pipelines import Pipeline


class CI(Pipeline):
    async def run(self, event, step):
        await step.sh("build", "mkdir out; echo made > out/made.txt; ln -s out/made.txt link")
        async with step.service("db", "echo up; sleep 600", ready="true"):
            await step.sh(
                "test",
                "echo changed > out/made.txt; exit 3",
                env={"WHO": "me"},
                secrets=["DEPLOY_KEY"],
            )
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunId]]:
    """A deployment with a run whose second command has failed, and no server."""
    data = tmp_path_factory.mktemp("debug") / "data"
    with deployed(data, cache=Path.home() / ".cache" / "sluice") as deployment:
        deployment.push({".ci/pipeline.py": PIPELINE, "tool.sh": "echo tool\n"})
        run_id = deployment.start()
        deployment.work()
        assert deployment.run(run_id).state == "failed", deployment.run(run_id)
    yield data, run_id


def command(data: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ci_platform.cli", "--data", str(data), "debug", *words]


def test_a_command_sees_what_the_step_saw(failed: tuple[Path, RunId], tmp_path: Path) -> None:
    data, run_id = failed
    kept = tmp_path / "kept"
    script = (
        "cat out/made.txt link; echo $WHO $CI_STEP_NAME; sh tool.sh; touch new; sh -e ~/step.sh"
    )
    found = subprocess.run(
        command(data, run_id, "test", "--command", script, "--keep", str(kept)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1, found.stderr
    assert found.stdout == "made\nmade\nme test\ntool\n"
    for words in (
        "sh:test of run #1 of acme/app: failed",
        "'test' exited with code 3",
        "with the changes of 1 step before it",
        "without its secrets: DEPLOY_KEY",
        "with its services: db",
        "exited with code 3",
    ):
        assert words in found.stderr
    assert (kept / "new").exists() and (kept / "link").readlink() == Path("out/made.txt")
    assert (kept / "out" / "made.txt").read_text() == "changed\n"


def test_a_step_that_passed_can_be_entered_too(failed: tuple[Path, RunId]) -> None:
    data, run_id = failed
    found = subprocess.run(
        command(data, run_id, "sh:build", "-c", "ls"), capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stdout) == (0, "tool.sh\n"), found.stderr


REMEMBERED = """
from pipelines import Pipeline


class CI(Pipeline):
    async def run(self, event, step):
        built = await step.sh("build", "mkdir out; date +%N > out/when.txt", cache=True)
        await step.sh("test", f"echo {built.from_run}; cat out/when.txt; exit 3")
"""


def test_what_a_step_took_from_an_earlier_run_is_there_too(
    tmp_path: Path, guest_cache: Path
) -> None:
    data = tmp_path / "data"
    with deployed(data, cache=guest_cache) as deployment:
        deployment.push({".ci/pipeline.py": REMEMBERED})
        first, second = deployment.start(), None
        deployment.work()
        second = deployment.start()
        deployment.work()
        logs = deployment.platform.store.logs
        made, taken = ([line.text for line in logs.read(one, "sh:test")] for one in (first, second))
    assert (made[0], taken[0]) == ("None", "1") and made[1] == taken[1]
    for words, code in (("test", 0), ("build", 1)):  # the second is as it was before it
        found = subprocess.run(
            command(data, second, words, "-c", "cat out/when.txt"), capture_output=True, text=True
        )
        assert found.returncode == code, found.stderr
        assert found.stdout == (f"{made[1]}\n" if code == 0 else "")


def test_a_shell_has_a_terminal_of_its_own(failed: tuple[Path, RunId]) -> None:
    data, run_id = failed
    pid, ours = pty.fork()
    if pid == 0:
        words = command(data, run_id, "test")
        os.execv(words[0], words)
    try:
        seen = read_until(ours, b"(sh:test)")
        os.write(ours, b"test -t 0 && echo a terminal; cat out/made.txt; echo $((6*7))\r")
        seen = read_until(ours, b"42")
        assert b"\ra terminal\r\nmade\r\n" in seen
        os.write(ours, b"sleep 100\r")
        time.sleep(0.3)
        os.write(ours, b"\x03")  # Ctrl-C ends the sleep, and nothing else
        os.write(ours, b"echo still $((1+1))\r")
        read_until(ours, b"still 2")
        os.write(ours, b"exit 0\r")
        read_until(ours, None)
    finally:
        os.close(ours)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def read_until(fd: int, words: bytes | None, seconds: float = 60.0) -> bytes:
    """What comes until these words, or until the end."""
    seen, deadline = b"", time.monotonic() + seconds
    while words is None or words not in seen:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([fd], [], [], left)[0], seen
        try:
            data = os.read(fd, 4096)
        except OSError:  # the other end is gone
            data = b""
        if not data:
            assert words is None, seen
            return seen
        seen += data
    return seen


def test_without_a_terminal_a_shell_is_refused(failed: tuple[Path, RunId]) -> None:
    data, run_id = failed
    found = subprocess.run(
        command(data, run_id, "test"), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert found.returncode == 2 and "--command" in found.stderr


def reader(deployment: Deployment, role: Role | None) -> Actor:
    repository = deployment.platform.repositories.list()[0]
    roles = {} if role is None else {repository.id: role}
    return replace(console("reader"), kind="user", admin=False, roles=roles)


def test_only_who_may_push_sees_commands_and_layers(
    failed: tuple[Path, RunId], guest_cache: Path
) -> None:
    data, run_id = failed
    with deployed(data, cache=guest_cache) as deployment:
        asked = StepCommands(deployment.platform.queries)
        found = asked.command(OWNER, run_id, "test")
        (layer,) = found.spec.base
        assert sum(map(len, asked.layer(OWNER, run_id, layer))) > 100
        writer = reader(deployment, Role.WRITER)
        assert asked.command(writer, run_id, "sh:test").spec == found.spec
        for ask in (
            lambda actor: asked.command(actor, run_id, "test"),
            lambda actor: asked.layer(actor, run_id, layer),
        ):
            with pytest.raises(Forbidden, match="you must be its writer"):
                ask(reader(deployment, Role.READER))
            with pytest.raises(NotFound):
                ask(reader(deployment, None))
        with pytest.raises(NotFound, match="has no layer"):
            asked.layer(OWNER, run_id, "f" * 64)
        with pytest.raises(StepNotFound, match="no step 'sh:nothing'"):
            asked.command(OWNER, run_id, "nothing")
        with pytest.raises(InvalidRequest, match="only steps of kind sh"):
            asked.command(OWNER, run_id, "service:db")
