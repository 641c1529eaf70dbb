"""Hostile pipelines: each fails its own run with a message its author understands, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ci_platform.model import Raised, Returned, Suspended
from ci_platform.sandbox import SandboxLimits, WasmSandbox
from tests.integration.sandbox_world import Host, activate, pipeline, source

MIB = 1 << 20
LIMITS = SandboxLimits(
    processes=1,
    cpu_seconds=0.5,
    wall_seconds=5.0,
    memory_bytes=96 * MIB,
    log_bytes=200_000,
    commands_bytes=4 * MIB,
)


@pytest.fixture(scope="module")
def sandbox(guest_cache: Path) -> Iterator[WasmSandbox]:
    sandbox = WasmSandbox(LIMITS, guest_cache)
    yield sandbox
    sandbox.close()


@pytest.fixture(autouse=True)
def _others_are_unharmed(sandbox: WasmSandbox) -> Iterator[None]:
    yield
    assert activate(sandbox, source(pipeline("return 'fine'"), repository="b")) == Returned("fine")


def failure(sandbox: WasmSandbox, body: str, host: Host | None = None) -> Raised:
    found = activate(sandbox, pipeline(body), host)
    assert isinstance(found, Raised), found
    return found


@pytest.mark.parametrize(
    ("body", "type"),
    [
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open('/proc/self/environ')", "FileNotFoundError"),
        ("open('x', 'w')", "FileNotFoundError"),
        ("import os\nos.listdir('/')", "FileNotFoundError"),
        ("import os\nos.mkdir('/x')", "FileNotFoundError"),
        ("import pathlib\npathlib.Path('.ci/pipeline.py').read_text()", "FileNotFoundError"),
        ("import tempfile\ntempfile.TemporaryFile()", "FileNotFoundError"),
        ("import os\nos.environ['HOME']", "KeyError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "gaierror"),
        ("import socket\nsocket.getaddrinfo('example.org', 80)", "gaierror"),
        ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1')", "URLError"),
        ("await asyncio.open_connection('127.0.0.1', 80)", "RuntimeError"),
        ("import subprocess\nsubprocess.run(['id'])", "OSError"),
        ("import os\nos.system('id')", "AttributeError"),
        ("import os\nos.fork()", "AttributeError"),
        ("import os\nos.execv('/bin/sh', ['sh'])", "AttributeError"),
        ("import os, signal\nos.kill(1, 9)", "AttributeError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
        ("await asyncio.to_thread(print)", "RuntimeError"),
        ("import multiprocessing", "ModuleNotFoundError"),
        ("import ctypes", "ModuleNotFoundError"),
        ("import sqlite3", "ModuleNotFoundError"),
        ("import ci_platform", "ModuleNotFoundError"),
        ("import wasmtime", "ModuleNotFoundError"),
        ("import time\ntime.sleep(1000)", "RuntimeError"),
        ("self.env.secrets['KEY']", "NotGranted"),
    ],
)
def test_there_is_nothing_to_reach(sandbox: WasmSandbox, body: str, type: str) -> None:
    found = failure(sandbox, body)
    assert found.error.type == type
    assert 'File ".ci/pipeline.py"' in found.error.traceback


def test_the_environment_is_empty_whatever_the_workers_holds(
    guest_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_TEST_SECRET", "hush")
    sandbox = WasmSandbox(LIMITS, guest_cache)
    try:
        body = "import os, sys\nreturn [dict(os.environ), sys.argv, os.getcwd()]"
        assert activate(sandbox, pipeline(body)) == Returned([{}, [], "/"])
        environment = Path(f"/proc/{sandbox.processes.idle()[0].popen.pid}/environ")
        if os.access(environment, os.R_OK):
            assert b"hush" not in environment.read_bytes()
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    ("body", "limit", "said"),
    [
        ("x = []\nwhile True: x.append(bytes(10**6))", "memory", "more than its 96 MiB of memory"),
        ("return 'x' * 10**9", "memory", "more than its 96 MiB of memory"),
        ("x = [1]\nwhile True: x += x", "memory", "more than its 96 MiB of memory"),
        ("await step.do('x', lambda: bytes(10**9))", "memory", "96 MiB of memory"),
        ("while True: pass", "cpu", "more than 0.5 seconds of CPU time"),
        ("return 10**10**9", "cpu", "more than 0.5 seconds of CPU time"),
        ("import re\nre.match('(a+)+$', 'a' * 64 + 'b')", "cpu", "seconds of CPU time"),
        (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            "cpu",
            "",
        ),
        ("while True: await asyncio.sleep(0)", "cpu", "seconds of CPU time"),
        ("f = lambda n: f(n + 1)\nf(0)", "recursion", "maximum recursion depth exceeded"),
        (
            "import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1)\nf(0)",
            "recursion",
            "called itself too deeply",
        ),
        ("import select\nselect.select([], [], [], 1000)", "wall", "held its sandbox for"),
        ("await step.do('x', lambda: asyncio.sleep(1000))", "wall", "held its sandbox for"),
        ("import os\nos.abort()", "crash", "crashed its interpreter"),
    ],
)
def test_every_limit_is_named(sandbox: WasmSandbox, body: str, limit: str, said: str) -> None:
    found = failure(sandbox, body)
    assert found.limit == limit
    assert said in found.error.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys\nsys.exit(3)", "sys.exit(3) was called"),
        ("exit_ = SystemExit\nraise exit_", "sys.exit(None) was called"),
        ("raise KeyboardInterrupt", ""),
        ("import os\nos._exit(3)", "ended its interpreter"),
        ("await step.do('x', lambda: __import__('os')._exit(0))", "ended its interpreter"),
        ("await step.do('x', lambda: __import__('sys').exit(0))", "sys.exit(0) was called"),
        ("raise asyncio.CancelledError", ""),
        ("asyncio.current_task().cancel()\nawait step.sleep('x', 1)", ""),
    ],
)
def test_leaving_early_fails_the_run(sandbox: WasmSandbox, body: str, said: str) -> None:
    assert said in failure(sandbox, body).error.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'x' * (2 << 20)", "the limit is 1048576"),
        ("return '\\ud800'", "broken Unicode"),
        ("return float('nan')", "is nan"),
        ("return {1: 2}", "the key 1 is not text"),
        ("x = []\nx.append(x)\nreturn x", "nested deeper than 100"),
        ("x = []\nfor _ in range(10**5): x = [x]\nreturn x", "nested deeper than 100"),
        ("return await step.do('x', lambda: {1, 2})", "the result of do:x is not JSON"),
        ("await step.do('x' * 300, print)", "name may have 256 characters"),
        ("await step.do('\\ud800', print)", "name is not valid Unicode"),
    ],
)
def test_values_that_no_journal_can_hold_are_refused(
    sandbox: WasmSandbox, body: str, said: str
) -> None:
    assert said in failure(sandbox, body).error.message


def test_catching_everything_around_an_await_does_not_catch_the_suspension(
    sandbox: WasmSandbox,
) -> None:
    class Suspending(Host):
        def next(self, commands: Any) -> Any:
            super().next(commands)
            return ()

    host = Suspending()
    body = """
        while True:
            try:
                await step.sleep("x", "1 day")
            except BaseException as error:
                print("caught", type(error))
            finally:
                print("finally")
        """
    assert activate(sandbox, pipeline(body), host) == Suspended()
    assert (host.logs, len(host.asked)) == ([], 1)


# --- the wire ---


def forged(sandbox: WasmSandbox, body: str, host: Host | None = None) -> Any:
    before = "import json\nfrom wit_world.imports import host\n"
    return activate(sandbox, pipeline(body, before=before), host)


@pytest.mark.parametrize(
    "body",
    [
        "host.next('junk')",
        "host.next('[' * 10**6)",
        "host.next('[' + '1,' * 10**6 + '1]')",
        "host.next(json.dumps([{'op': 'start', 'key': ['sh', 'x', 1], 'config': {}}]))",
        "host.next(json.dumps([{'op': 'start', 'key': ['do', '$run', 1], 'config': {}}]))",
        "host.next(json.dumps([{'op': 'finish', 'key': ['approval', 'x', 1], 'attempt': 1, "
        "'value': {'approved': True}}]))",
        "host.next(json.dumps([{'op': 'finish', 'key': ['do', 'x', 1], 'attempt': 1, "
        "'value': 'x' * (2 << 20)}]))",
        "host.next('x' * (8 << 20))",
    ],
)
def test_forged_commands_fail_the_run_that_forged_them(sandbox: WasmSandbox, body: str) -> None:
    host = Host()
    found = forged(sandbox, body, host)
    assert isinstance(found, Raised)
    assert found.error.type == "SandboxProtocol"
    assert "what no pipeline sends" in found.error.message
    assert host.asked == []


def test_text_that_is_no_unicode_cannot_cross(sandbox: WasmSandbox) -> None:
    found = forged(sandbox, "host.next('[\"\\ud800\"]')")
    assert isinstance(found, Raised)


def test_a_forged_suspension_is_none(sandbox: WasmSandbox) -> None:
    body = """
        import pipelines.guest
        pipelines.guest.Guest.activate = lambda self, text: '{"suspended":true}'
        import pipelines.replay
        pipelines.replay.Replay._end = lambda self, main: {"suspended": True}
        """
    found = forged(sandbox, body)
    assert isinstance(found, Raised)
    assert found.error.type == "SandboxProtocol"


def test_going_on_after_a_suspension_is_not_listened_to(sandbox: WasmSandbox) -> None:
    class Suspending(Host):
        def next(self, commands: Any) -> Any:
            super().next(commands)
            return ()

    for after in ("host.next('[]')", "return 1", "raise ValueError", "while True: pass"):
        host = Suspending()
        assert forged(sandbox, f"host.next('[]')\n{after}", host) == Suspended()
        assert host.asked == []


@pytest.mark.parametrize(
    "body",
    [
        "host.inside('x', 2**64 - 1)\nhost.outside(2**64 - 1)",
        "import datetime\nhost.outside(2**64 - 1)\ntry: datetime.datetime.now()\n"
        "except Exception: pass",
        "host.log('a' * 10**6, 'b' * 10**6, '')",
        "for _ in range(100_000): host.log('', '', '')",
        "import json\nfor name in list(vars(json)): setattr(json, name, None)",
        "import gc\nfor each in gc.get_objects():\n    if isinstance(each, dict): each.clear()",
    ],
)
def test_tampering_hurts_its_own_run_only(sandbox: WasmSandbox, body: str) -> None:
    host = Host()
    assert isinstance(forged(sandbox, body, host), (Raised, Returned))
    assert len(host.printed) < LIMITS.log_bytes


def test_sleeping_through_the_wire_is_bounded(sandbox: WasmSandbox) -> None:
    found = forged(sandbox, "host.sleep(2**63)")
    assert isinstance(found, Raised)
    assert found.limit == "wall"


# --- logs ---


def test_endless_prints_are_cut_and_the_log_says_so(sandbox: WasmSandbox) -> None:
    host = Host()
    found = failure(sandbox, "while True: print('x' * 1000)", host)
    assert found.limit == "cpu"
    assert len(host.printed) < LIMITS.log_bytes + 100_000
    assert host.logs[-1][1:] == ("note", "\nthe log's limit is reached: the rest is left out\n")


def test_one_huge_line_comes_in_pieces(sandbox: WasmSandbox) -> None:
    host = Host()
    assert activate(sandbox, pipeline("print('x' * 150_000)"), host) == Returned(None)
    assert len(host.printed) == 150_001
    assert max(len(text) for _, _, text in host.logs) <= 65_536


def test_prints_that_are_no_text_are_cleaned(sandbox: WasmSandbox) -> None:
    host = Host()
    body = "print('\\ud800\\0\\x1b[31m')\nimport sys\nsys.stdout.write(b'x')"
    failure(sandbox, body, host)
    assert host.printed == "?\ufffd\x1b[31m\n"


# --- exceptions ---


@pytest.mark.parametrize(
    "body",
    [
        "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E",
        "class E(BaseException):\n    def __str__(self): return 'x' * 10**7\nraise E",
        "raise type('\\ud800' * 1000, (Exception,), {})('\\0')",
        "class E(Exception):\n    def __getattribute__(self, name): raise RuntimeError\nraise E",
        "e = ValueError('x')\ne.__cause__ = e\nraise e",
        "raise ExceptionGroup('g', [ExceptionGroup('h', [ValueError(n)]) for n in range(999)])",
        "await step.do('x', lambda: (_ for _ in ()).throw(StopIteration), retries=0)",
        "raise StopIteration",
    ],
)
def test_odd_exceptions_are_told_within_bounds(sandbox: WasmSandbox, body: str) -> None:
    error = failure(sandbox, body).error
    assert len(error.type) + len(error.message) + len(error.traceback) < 50_000
    (error.type + error.message + error.traceback).encode()


def test_a_file_that_loads_for_ever_does_not_hold_a_git_client(guest_cache: Path) -> None:
    sandbox = WasmSandbox(SandboxLimits(processes=1, describe_seconds=0.5), guest_cache)
    try:
        said = sandbox.describe(source("while True:\n    pass\n"))
        assert said.error is not None
        assert "limit: wall" in said.error.message
        assert sandbox.describe(source(pipeline("return 1"))).error is None
    finally:
        sandbox.close()
