"""Pipelines in the real sandbox: wasmtime, processes, and the guest built from this tree."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ci_platform.errors import LeaseLost, SandboxUnavailable
from ci_platform.model import (
    Command,
    Entry,
    EntryKind,
    Mismatch,
    Raised,
    Returned,
    StepKey,
    StepKind,
    Suspended,
)
from ci_platform.sandbox import SandboxLimits, WasmSandbox
from tests.integration.sandbox_world import START_MS, Host, activate, pipeline, source


@pytest.fixture(scope="module")
def sandbox(guest_cache: Path) -> Iterator[WasmSandbox]:
    sandbox = WasmSandbox(SandboxLimits(processes=2), guest_cache)
    yield sandbox
    sandbox.close()


THREE = pipeline(
    """
    a = await step.do("a", lambda: event.params["n"])
    b, c = await asyncio.gather(step.do("b", lambda: a + 1), step.sh("c", "true"))
    print("done", a, b)
    return [a, b, c.exit_code]
    """
)


def test_a_pipeline_runs_and_its_journal_replays(sandbox: WasmSandbox) -> None:
    host = Host()
    assert activate(sandbox, THREE, host) == Returned([1, 2, 0])
    assert host.logs == [("$run", "stdout", "done 1 2\n")]
    asked = len(host.asked)
    host.add(EntryKind.RUN_SUSPENDED)
    assert activate(sandbox, THREE, host) == Returned([1, 2, 0])
    assert len(host.asked) == asked
    assert len(host.logs) == 1


def test_a_file_describes_itself(sandbox: WasmSandbox) -> None:
    code = pipeline("pass").replace(
        "class CI(Pipeline):\n",
        "class CI(Pipeline):\n    triggers = [on_push(branches=['main']), on_manual("
        "inputs={'where': Choice('a', 'b')})]\n    timeout = '2 hours'\n",
    )
    found = sandbox.describe(source(code))
    assert found.error is None
    (described,) = found.pipelines
    assert (described.name, described.timeout_ms) == ("CI", 7_200_000)
    assert described.triggers[0].branches == ("main",)
    assert described.triggers[1].inputs["where"]["options"] == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "type", "line"),
    [
        ("class CI(:\n", "SyntaxError", "line 1"),
        ("import os\nx = os.environ['HOME']\n", "KeyError", "line 2"),
        ("x = 1\n", "NoPipeline", ""),
        ("while True: pass\n", "LimitExceeded", ""),
        ("import os\nos._exit(0)\n", "SystemExit", ""),
        ("from wit_world.imports import host\nhost.next('[]')\n", "SandboxProtocol", ""),
    ],
)
def test_a_file_that_does_not_load_says_why(
    guest_cache: Path, code: str, type: str, line: str
) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1, cpu_seconds=0.5), guest_cache)
    try:
        found = sandbox.describe(source(code))
        assert found.error is not None
        assert found.error.type == type
        assert line in found.error.traceback
        assert sandbox.describe(source(THREE)).error is None
    finally:
        sandbox.close()


def test_helpers_in_other_files_are_imported_and_shown_in_tracebacks(
    sandbox: WasmSandbox,
) -> None:
    files = {
        ".ci/pipeline.py": pipeline(
            "return [h.one, two()]", before="import h\nfrom lib.x import two\n"
        ),
        ".ci/h.py": "one = 1\n",
        ".ci/lib/x.py": "def two():\n    return 2 / 0\n",
    }
    found = activate(sandbox, source(files))
    assert isinstance(found, Raised)
    assert 'File ".ci/lib/x.py", line 2, in two\n    return 2 / 0' in found.error.traceback
    assert 'File ".ci/pipeline.py", line 8, in run' in found.error.traceback
    assert "replay.py" not in found.error.traceback


def test_waiting_suspends_and_no_code_notices(sandbox: WasmSandbox) -> None:
    host = Host()
    code = pipeline(
        """
        try:
            await step.sleep("long", "3 days")
        except BaseException as error:
            print("caught", error)
        finally:
            print("finally")
        return "woke"
        """
    )

    class Suspending(Host):
        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            super().next(commands)
            return ()

    host = Suspending()
    assert activate(sandbox, code, host) == Suspended()
    assert host.logs == []
    host.add(EntryKind.RUN_SUSPENDED)
    host.add(EntryKind.STEP_PASSED, StepKey(StepKind.SLEEP, "long"), 1)
    assert activate(sandbox, code, host) == Returned("woke")
    assert host.printed == "finally\n"


def test_time_outside_bodies_is_the_journals_and_inside_the_real_one(
    sandbox: WasmSandbox,
) -> None:
    code = pipeline(
        """
        import time, datetime
        def now():
            return [time.time(), time.time_ns() / 1e9, datetime.datetime.now().timestamp(),
                    time.monotonic()]
        before, inside = now(), await step.do("now", now)
        return [before, inside, now(), time.strftime("%Y-%m-%d")]
        """
    )
    host = Host()
    found = activate(sandbox, code, host)
    assert isinstance(found, Returned)
    before, inside, after, day = found.output
    assert before == [(START_MS + 1000) / 1000] * 4
    assert len(set(after)) == 1 and before[0] < after[0] <= host.entries[-1].at_ms / 1000
    assert day == "2030-03-17"
    assert all(abs(each - inside[0]) < 1 for each in inside[:3])
    assert abs(inside[0] - before[0]) > 1_000_000
    again = activate(sandbox, code, host)
    assert isinstance(again, Returned) and again.output == found.output


RANDOM = pipeline(
    """
    import os, random, secrets, uuid
    def draw():
        return [random.random(), random.randrange(10**9), random.gauss(0, 1), os.urandom(8).hex(),
                secrets.token_hex(8), str(uuid.uuid4()), random.Random().random(),
                random.SystemRandom().random(), random.sample(range(1000), 3)]
    first = draw()
    inside = await step.do("inside", draw)
    return [first, inside, draw()]
    """
)


def test_randomness_outside_bodies_is_the_runs_own_and_inside_the_real_one(
    sandbox: WasmSandbox,
) -> None:
    one, two, other = (
        activate(sandbox, RANDOM, seed=seed) for seed in ("same", "same", "different")
    )
    assert all(isinstance(each, Returned) for each in (one, two, other))
    outputs: Any = [each.output for each in (one, two, other) if isinstance(each, Returned)]
    first, second, third = outputs
    assert (first[0], first[2]) == (second[0], second[2])
    for mine, theirs in ((first[0], third[0]), (first[1], second[1]), (first[0], first[2])):
        assert all(a != b for a, b in zip(mine, theirs, strict=True))


def test_a_replay_that_differs_is_a_mismatch(sandbox: WasmSandbox) -> None:
    host = Host()
    activate(sandbox, THREE, host)
    found = activate(sandbox, THREE.replace('"b"', '"other"'), host)
    assert found == Mismatch(5, "do:b", "do:other")


def test_newer_code_takes_results_by_key(sandbox: WasmSandbox) -> None:
    host = Host()
    activate(sandbox, THREE, host)
    newer = pipeline(
        """
        new = await step.do("new", lambda: "new")
        return [new, await step.do("a", lambda: "never")]
        """
    )
    assert activate(sandbox, newer, host, strict=False) == Returned(["new", 1])
    changes = [entry for entry in host.entries if entry.kind is EntryKind.DIVERGED]
    assert [(str(entry.key), entry.data["change"]) for entry in changes] == [
        ("do:new", "inserted"),
        ("do:b", "missing"),
        ("sh:c", "missing"),
    ]


def test_bodies_print_to_their_steps_log(sandbox: WasmSandbox) -> None:
    host = Host()
    code = pipeline(
        """
        def body():
            print("inside")
        await step.do("talk", body)
        await step.do("talk", body)
        print("outside", flush=True)
        """
    )
    activate(sandbox, code, host)
    assert host.logs == [
        ("do:talk", "stdout", "inside\n"),
        ("do:talk#2", "stdout", "inside\n"),
        ("$run", "stdout", "outside\n"),
    ]


def test_bodies_wait_for_real_time(sandbox: WasmSandbox) -> None:
    code = pipeline(
        """
        import time
        async def both():
            begun = time.monotonic()
            await asyncio.sleep(0.05)
            time.sleep(0.05)
            return time.monotonic() - begun >= 0.1
        async def slow():
            await asyncio.sleep(60)
        try:
            await step.do("slow", slow, timeout=0.1, retries=0)
        except TimeoutError:
            return await step.do("both", both)
        """
    )
    assert activate(sandbox, code) == Returned(True)


def test_the_whole_standard_library_is_there(sandbox: WasmSandbox) -> None:
    code = pipeline(
        """
        import configparser, csv, decimal, email.message, fractions, gzip, html.parser, ipaddress
        import logging, mimetypes, pathlib, pickle, statistics, string, tomllib, unittest
        import urllib.parse, uuid, xml.etree.ElementTree, zipfile, zlib
        return tomllib.loads("a = 1")["a"] + len(urllib.parse.urlsplit("http://x/y").path)
        """
    )
    assert activate(sandbox, code) == Returned(3)


def test_an_error_of_the_host_is_raised_and_the_sandbox_goes_on(sandbox: WasmSandbox) -> None:
    class Losing(Host):
        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            raise LeaseLost

    for _ in range(5):
        with pytest.raises(LeaseLost):
            activate(sandbox, THREE, Losing())
    assert activate(sandbox, THREE) == Returned([1, 2, 0])


def test_many_threads_share_the_processes(sandbox: WasmSandbox) -> None:
    found: list[Any] = []

    def work(name: str) -> None:
        code = pipeline(f"return await step.do('x', lambda: {name!r})")
        for _ in range(5):
            found.append(activate(sandbox, source(code, repository=name)) == Returned(name))

    threads = [threading.Thread(target=work, args=(f"repo_{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 30


# --- warm interpreters ---


def test_equal_code_finds_its_interpreter_again_with_fresh_modules(guest_cache: Path) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    try:
        code = pipeline("SEEN.append(1)\nreturn [len(SEEN), id(asyncio)]", before="SEEN = []\n")
        first, second = activate(sandbox, code), activate(sandbox, code)
        assert isinstance(first, Returned)
        assert first == second
        assert sandbox.processes.idle()[0].warm_uses == 2
    finally:
        sandbox.close()


def test_other_repositories_other_code_and_untrusted_runs_get_their_own_interpreter(
    guest_cache: Path,
) -> None:
    """Code that may be used again leaves a mark where it can; nobody else ever sees it."""
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    marking = pipeline(
        """
        found = getattr(json, "mark", None)
        for module in [json]:
            module.mark = event.params["n"]
        return found
        """,
        before="import json\n",
    )
    try:
        assert activate(sandbox, source(marking)) == Returned(None)
        assert activate(sandbox, source(marking)) == Returned(1)  # its own code and repository
        assert activate(sandbox, source(marking, repository="repo_b")) == Returned(None)
        assert activate(sandbox, source(marking + "#")) == Returned(None)
        assert activate(sandbox, source(marking), trusted=False) == Returned(None)
    finally:
        sandbox.close()


def test_code_that_reaches_for_the_interpreter_gets_a_fresh_one_each_time(
    guest_cache: Path,
) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    code = pipeline(
        "found = getattr(sys, 'mark', None)\nsys.mark = 1\nreturn found", before="import sys\n"
    )
    try:
        assert [activate(sandbox, code) for _ in range(3)] == [Returned(None)] * 3
    finally:
        sandbox.close()


def test_an_interpreter_and_a_process_are_used_only_so_often(guest_cache: Path) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1, uses_max=4, warm_uses_max=2), guest_cache)
    code = pipeline("return 1")
    try:
        first = sandbox.processes.idle()[0].popen.pid
        for _ in range(3):
            activate(sandbox, code)
        assert sandbox.processes.idle()[0].popen.pid == first
        assert sandbox.processes.idle()[0].warm_uses == 1  # the third began a new one
        activate(sandbox, code)
        activate(sandbox, code)
        assert sandbox.processes.idle()[0].popen.pid != first
    finally:
        sandbox.close()


def test_a_suspended_run_in_a_warm_interpreter_is_not_unwound_by_the_next(
    guest_cache: Path,
) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    code = pipeline(
        """
        try:
            await step.wait_for_event("x", type="x")
        finally:
            print("unwound")
        """
    )

    class Suspending(Host):
        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            super().next(commands)
            return ()

    try:
        for _ in range(5):
            host = Suspending()
            assert activate(sandbox, code, host) == Suspended()
            assert host.logs == []
        assert sandbox.processes.idle()[0].warm_uses == 5
    finally:
        sandbox.close()


# --- processes ---


def test_a_sandbox_process_that_is_killed_breaks_one_activation_only(guest_cache: Path) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)

    class Killing(Host):
        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            for child in sandbox_children():
                child.kill()
            return super().next(commands)

    pids: list[Any] = [sandbox.processes.idle()[0].popen]

    def sandbox_children() -> list[Any]:
        return pids

    try:
        found = activate(sandbox, THREE, Killing())
        assert type(found).__name__ == "Broke"
        assert activate(sandbox, THREE) == Returned([1, 2, 0])
    finally:
        sandbox.close()


def test_processes_that_were_killed_while_they_were_idle_break_no_activation(
    guest_cache: Path,
) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    try:
        for _ in range(2):
            killed = sandbox.processes.idle()[0].popen
            killed.kill()
            os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
            assert activate(sandbox, pipeline("return 1")) == Returned(1)
            assert sandbox.processes.idle()[0].popen is not killed
    finally:
        sandbox.close()


def test_a_closed_sandbox_refuses_and_leaves_no_process(guest_cache: Path) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    child = sandbox.processes.idle()[0].popen
    sandbox.close()
    assert child.poll() is not None
    with pytest.raises(SandboxUnavailable, match="closed"):
        activate(sandbox, THREE)


def test_processes_start_only_when_all_are_busy(guest_cache: Path) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=2), guest_cache)

    class Nested(Host):
        """While one activation waits for its answer, another is run."""

        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            found.append(activate(sandbox, source(pipeline("return 2"), repository="other")))
            return super().next(commands)

    found: list[Any] = []
    try:
        for repository in ("a", "b", "c"):
            activate(sandbox, source(pipeline("return 1"), repository=repository))
        assert len(sandbox.processes.idle()) == 1
        assert activate(sandbox, pipeline("await step.do('x', lambda: 1)"), Nested()) == Returned(
            None
        )
        assert set(found) == {Returned(2)}
        assert len(sandbox.processes.idle()) == 2
    finally:
        sandbox.close()


def test_when_a_burst_is_over_one_fresh_process_is_left(guest_cache: Path) -> None:
    limits = SandboxLimits(processes=2, rest_seconds=0.05, burst_uses=1)
    sandbox = WasmSandbox(limits, guest_cache)
    used: list[Any] = []

    class Nested(Host):
        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            activate(sandbox, source(pipeline("return 2"), repository="other"))
            used.extend(process for process in sandbox.processes.idle() if process.uses)
            return super().next(commands)

    try:
        activate(sandbox, pipeline("await step.do('x', lambda: 1)"), Nested())
        deadline = time.monotonic() + 20
        while (idle := sandbox.processes.idle()) == [] or idle[0].uses or len(idle) > 1:
            assert time.monotonic() < deadline, idle
            time.sleep(0.01)
        assert used
        for process in used:
            process.popen.wait(20)
        assert activate(sandbox, THREE) == Returned([1, 2, 0])
    finally:
        sandbox.close()


def test_a_sandbox_that_cannot_start_says_why(
    guest_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1, uses_max=1), guest_cache)
    try:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        assert activate(sandbox, THREE) == Returned([1, 2, 0])  # and its process is used up
        with pytest.raises(SandboxUnavailable, match="no sandbox process starts"):
            activate(sandbox, THREE)
        monkeypatch.undo()
        assert activate(sandbox, THREE) == Returned([1, 2, 0])
    finally:
        sandbox.close()


def test_sandbox_processes_are_out_of_reach_of_a_ctrl_c(sandbox: WasmSandbox) -> None:
    child = sandbox.processes.idle()[0].popen.pid
    assert os.getpgid(child) != os.getpgid(0)


def test_a_long_journal_is_read_in_one_go(sandbox: WasmSandbox) -> None:
    code = pipeline(
        """
        total = 0
        for number in range(1000):
            total += await step.do(f"step {number}", lambda: number)
        await step.sleep("end", 1)
        """
    )
    host = Host()
    for number in range(1000):
        key = StepKey(StepKind.DO, f"step {number}")
        host.add(EntryKind.STEP_STARTED, key, 1, config={})
        host.add(EntryKind.STEP_PASSED, key, 1, value=number)

    class Suspending(Host):
        def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
            self.asked += commands
            return ()

    waiting = Suspending()
    waiting.entries = host.entries
    assert activate(sandbox, code, waiting) == Suspended()
    assert [str(command.key) for command in waiting.asked] == ["sleep:end"]
