"""A stand-in server with something to lose, and the attacks run beside it.

`besiege` works under any uid; `python -c` code of another user calls it too, so it takes and
returns plain values. The attacks would harm the machine if they were run as root without a
sandbox: that is refused.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from ci_platform.runner import SandboxRunner, UnsandboxedRunner
from ci_platform.runner.sandboxed import server_python
from tests.integration.runner_world import (
    Bench,
    GivenTrees,
    nap,
    objects_in,
    waiting_service,
)

OTHER = "work/jobs/job-of-another/files"
SERVER_SECRET, STEP_SECRET = "s3cret-of-the-server", "s3cret-of-the-step"
MARK = nap(68)
_ADD_KEY = {"x86_64": 248, "aarch64": 217}
_SHMGET = {"x86_64": 29, "aarch64": 194}
_SHMCTL = {"x86_64": 31, "aarch64": 195}
_SHM_KEY = 0x51C1CE
BESIDE = " beside a service"  # behind the name of a launcher


def besiege(directory: Path, launcher: str) -> Mapping[str, str | None]:
    """Run all attacks as a command, by a launcher (and BESIDE: in a network with a service) or
    `none`; name -> null if it was stopped, else how it worked."""
    services = [waiting_service()] if launcher.endswith(BESIDE) else []
    launcher = launcher.removesuffix(BESIDE)
    sandboxed = launcher != "none"
    assert sandboxed or os.geteuid() != 0, "without a sandbox these attacks would do harm as root"
    with ExitStack() as cleanup:
        facts = _server(directory, cleanup) | {
            # Where there is a network, an answer may take half a minute.
            "left_out": [] if sandboxed else ["resolve a name"]
        }
        trees = GivenTrees(
            {
                "attacks.py": Path(__file__).with_name("attacks.py").read_text(),
                "facts.json": json.dumps(facts),
            }
        )
        objects, work_dir = objects_in(directory), directory / "work"
        tools = directory / "tools"
        runner: SandboxRunner | UnsandboxedRunner
        if sandboxed:
            runner = SandboxRunner(
                trees=trees,
                objects=objects,
                work_dir=work_dir,
                extra_ro=[*server_python(), tools],
                launcher=launcher,
            )
        else:
            path = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
            runner = UnsandboxedRunner(
                trees=trees, objects=objects, work_dir=work_dir, env={"PATH": path}
            )
        cleanup.callback(runner.close)
        (directory / OTHER).mkdir(parents=True)  # now: at its start a runner sweeps what is left
        (directory / OTHER / "private").write_text("another tenant's")
        bench = Bench(runner)
        result = bench.sh(
            "python3 attacks.py",
            env={"STEP_SECRET": STEP_SECRET},
            timeout_ms=60_000,
            services=services,
        )
        assert result.exit_code == 0, (result, bench.said)
        found: Mapping[str, str | None] = json.loads(bench.text("stdout"))
        return found


def _server(directory: Path, cleanup: ExitStack) -> dict[str, object]:
    """Everything the attacks are after."""
    for name in ("key", "sluice.db"):
        (directory / name).write_text(SERVER_SECRET)
        (directory / name).chmod(0o600)
    (directory / "tools/bin").mkdir(parents=True)
    shutil.copy("/usr/bin/id", directory / "tools/bin/id")
    (directory / "tools/bin/id").chmod(0o4755)
    process = subprocess.Popen(["sleep", MARK], env={"DATABASE_URL": SERVER_SECRET})
    cleanup.callback(process.wait)
    cleanup.callback(process.kill)
    loopback = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
    abstract, path = f"sluice-{os.getpid()}", directory / "socket"
    for address in (f"\0{abstract}", str(path)):
        listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(address)
        listener.listen()
    path.chmod(0o777)
    return {
        "key_file": str(directory / "key"),
        "database": str(directory / "sluice.db"),
        "other_workspace": str(directory / OTHER),
        "tree_cache": str(directory / "work/trees"),
        "objects": str(directory / "objects"),
        "work_dir": str(directory / "work"),
        "server_secret": SERVER_SECRET,
        "step_secret": STEP_SECRET,
        "server_pid": process.pid,
        "server_mark": MARK,
        "loopback_port": loopback.getsockname()[1],
        "abstract_socket": abstract,
        "socket_file": str(path),
        "setuid_id": str(directory / "tools/bin/id"),
        "key_serial": _key(),
        "shm_key": _shared_memory(cleanup),
    }


def _key() -> int:
    """A key in the user's keyring, which is what a server would keep there."""
    libc = ctypes.CDLL(None, use_errno=True)
    secret = SERVER_SECRET.encode()
    number = _ADD_KEY[platform.machine()]
    serial: int = libc.syscall(number, b"user", b"sluice-test", secret, len(secret), -4)
    return serial


def _shared_memory(cleanup: ExitStack) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    key = _SHM_KEY + os.getpid()
    identifier = libc.syscall(_SHMGET[platform.machine()], key, 4096, 0o1666)
    assert identifier >= 0, "shared memory can be made"
    cleanup.callback(libc.syscall, _SHMCTL[platform.machine()], identifier, 0, None)
    return key
