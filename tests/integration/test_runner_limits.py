"""Bombs: each ends soon, says which limit it was, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci_platform.runner import RunnerLimits, SandboxRunner
from ci_platform.shell import LINE_BYTES_MIN
from tests.integration.runner_world import (
    Bench,
    GivenTrees,
    nap,
    objects_in,
    processes_of,
    processes_that_say,
)

LIMITS = RunnerLimits(
    memory_bytes=192 << 20,
    disk_bytes=80 << 20,
    pids=64,
    cpu_seconds=1,
    open_files=256,
    tmp_bytes=16 << 20,
    output_bytes=32 << 20,
    grace_seconds=1.0,
)
pytestmark = pytest.mark.slow  # each bomb takes its seconds

UID = 211_000 + os.getpid() % 1000 * 100  # of this session's own, to tell its processes
READ_BYTES = 1 << 16  # of output at once
ENDS_WITHIN_SECONDS = 20  # far above what it takes: this machine may be busy


@pytest.fixture(params=[None, "python"], ids=["bubblewrap", "python"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    runner = SandboxRunner(
        trees=GivenTrees(),
        objects=objects_in(tmp_path),
        work_dir=tmp_path / "w",
        limits=LIMITS,
        first_uid=UID,
        launcher=request.param,
    )
    yield Bench(runner)
    runner.close()


def python(code: str) -> str:
    return f"exec python3 -c '\n{code}\n'"


BOMBS = {
    "one process takes memory": (
        python("a=[]\nwhile True: a.append(bytearray(b'x' * (4 << 20)))".replace("'", '"')),
        "memory",
    ),
    "many processes take memory together": (
        'for i in 1 2 3 4 5 6 7 8; do python3 -c \'x = b"x" * (48 << 20); import time; '
        "time.sleep(63)' & done; wait",
        "memory",
    ),
    "forks without end": (
        python(
            "import os,time\nwhile True:\n  try:\n    os.fork()\n  except OSError: time.sleep(1)"
        ),
        "pids",
    ),
    "forks that never rest": (
        python("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"),
        "pids",
    ),
    "lines without end, all tiny": ("exec yes", "output"),
    "threads without end": (
        python(
            "import threading,time\nwhile True:\n  try:\n"
            "    threading.Thread(target=time.sleep,args=(63,)).start()\n"
            "  except RuntimeError: time.sleep(1)"
        ),
        "pids",
    ),
    "processor time of one process": ("while :; do :; done", "cpu"),
    "one big file": ("exec head -c 200000000 /dev/zero > big; sleep 63", "disk"),
    "a file without a name": (
        python(
            "import os,time\n"
            "for n in range(8):\n"
            '  fd=os.open(f"f{n}",os.O_RDWR|os.O_CREAT)\n'
            '  os.unlink(f"f{n}")\n'
            '  os.write(fd,b"x"*(20<<20))\n'
            "time.sleep(63)"
        ),
        "disk",
    ),
    "preallocated space": (
        python(
            "import ctypes,os,time\n"
            'fd=os.open("f",os.O_RDWR|os.O_CREAT)\n'
            "ctypes.CDLL(None).fallocate(fd,1,ctypes.c_long(0),ctypes.c_long(200<<20))\n"
            "time.sleep(63)"
        ),
        "disk",
    ),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_ends_with_the_name_of_its_limit(bench: Bench, name: str) -> None:
    script, limit = BOMBS[name]
    began = time.monotonic()
    result = bench.sh(script)
    took = time.monotonic() - began
    assert (result.exit_code, result.ended) == (None, limit), (result, bench.said)
    assert "SLUICE_COMMAND_" in result.detail
    assert result.detail in bench.text("note")
    assert took < ENDS_WITHIN_SECONDS
    assert processes_of(range(UID, UID + 100)) == []


def test_a_fork_bomb_of_a_shell_chokes_on_the_limit_or_is_ended(bench: Bench) -> None:
    """It may exhaust the limit and die of it before anyone has looked."""
    began = time.monotonic()
    result = bench.sh("f() { f | f & }; f; sleep 1")
    assert result.ended == "pids" or "Cannot fork" in result.output_tail
    assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    assert processes_of(range(UID, UID + 100)) == []


def test_a_line_counts_as_a_number_of_bytes_at_least(bench: Bench) -> None:
    result = bench.sh("yes | head -n 3000000")
    assert result.ended == "output"
    lines = len(bench.text("stdout")) // 2
    assert lines <= LIMITS.output_bytes // LINE_BYTES_MIN + READ_BYTES


def test_memory_shared_between_processes_counts_once(bench: Bench) -> None:
    result = bench.sh(
        python(
            "import os,time\n"
            "x=bytearray(100<<20)\n"
            'x[::4096]=b"x"*len(x[::4096])\n'
            "for i in range(4):\n"
            "  if os.fork()==0:\n"
            "    time.sleep(0.6); os._exit(0)\n"
            "for i in range(4): os.wait()"
        )
    )
    assert (result.exit_code, result.ended) == (0, None), result


def test_what_is_only_reserved_does_not_count(bench: Bench) -> None:
    reserve = (
        "import mmap; m=mmap.mmap(-1, 8<<30, flags=mmap.MAP_PRIVATE|0x4000, prot=mmap.PROT_READ)"
    )
    assert bench.sh(python(reserve)).exit_code == 0


def test_tmp_and_shm_have_their_own_size_and_are_gone_afterwards(bench: Bench) -> None:
    for directory in ("/tmp", "/home/ci", "/dev/shm"):
        result = bench.sh(f"head -c 100000000 /dev/zero > {directory}/x")
        assert result.exit_code == 1, directory
        assert "No space left" in result.output_tail
    assert bench.sh("ls -A /tmp /home/ci").output_tail == "/home/ci:\n\n/tmp:\n"


def test_open_files_are_limited(bench: Bench) -> None:
    result = bench.sh(python('l=[open("/dev/null") for i in range(400)]'))
    assert result.exit_code == 1
    assert "Too many open files" in result.output_tail


def test_a_program_that_holds_all_its_open_files_ends_with_the_name_of_the_limit(
    bench: Bench,
) -> None:
    code = 'import time\nl=[]\ntry:\n  while True: l.append(open("/dev/null"))\n'
    result = bench.sh(python(code + "except OSError: time.sleep(30)"))
    assert (result.exit_code, result.ended) == (None, "open_files")
    assert "the limit is 256 (SLUICE_COMMAND_OPEN_FILES)" in result.detail


def test_limits_cannot_be_raised_from_inside(bench: Bench) -> None:
    result = bench.sh("ulimit -n 4096")
    assert result.exit_code != 0


@pytest.mark.parametrize(
    "escape",
    [
        "sleep NAP &",
        "(setsid sleep NAP &) &",
        "nohup setsid sh -c 'trap \"\" TERM HUP INT; sleep NAP' >/dev/null 2>&1 &",
        "python3 -c 'import os\nif os.fork()==0:\n os.setsid()\n if os.fork()==0:\n"
        '  os.closerange(0,9); os.execvp("sleep",["sleep","NAP"])\'',
    ],
)
def test_no_process_survives_its_command(bench: Bench, escape: str) -> None:
    began = time.monotonic()
    script = escape.replace("NAP", nap(64))
    assert bench.sh(f"{script}\nsleep 0.2").exit_code == 0
    assert time.monotonic() - began < 5
    assert processes_that_say(nap(64)) == []


def test_daemons_end_with_a_command_that_times_out(bench: Bench) -> None:
    result = bench.sh(
        f"setsid sh -c 'trap \"\" TERM; sleep {nap(65)}' & sleep {nap(65)}", timeout_ms=400
    )
    assert result.ended == "timeout"
    assert processes_that_say(nap(65)) == []


def test_a_program_may_clean_up_although_its_shell_would_not_wait(bench: Bench) -> None:
    """TERM to the shell would end the sandbox, and the program in it at once."""
    program = (
        "import os,signal,time\n"
        'def end(*_): time.sleep(0.3); os.write(1, b"cleaned"); os._exit(3)\n'
        "signal.signal(signal.SIGTERM,end)\n"
        'print("ready", flush=True)\n'
        "time.sleep(66)"
    )
    result = bench.sh(f"python3 -c '{program}'; echo after", stop=lambda: bool(bench.said))
    assert result.ended == "cancelled"
    assert bench.text("stdout") == "ready\ncleaned"


def test_no_process_survives_the_worker(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ci_platform.runner import SandboxRunner\n"
        "from tests.integration.runner_world import Bench, GivenTrees, objects_in\n"
        "d = Path(sys.argv[1])\n"
        "r = SandboxRunner(trees=GivenTrees(), objects=objects_in(d), work_dir=d / 'w')\n"
        f"Bench(r).sh('setsid sleep {nap(67)} & echo ready; sleep {nap(67)}',"
        " output=lambda s, b: print(b.decode(), flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=os.getcwd()
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 5
        while len(processes_that_say(f"sleep\x00{nap(67)}")) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(processes_that_say(f"sleep\x00{nap(67)}")) == 2
        worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while processes_that_say(f"sleep\x00{nap(67)}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_that_say(f"sleep\x00{nap(67)}") == []


def test_commands_outlive_the_thread_that_started_the_launcher(bench: Bench) -> None:
    """Bubblewrap dies with the thread that started it: that must not be one of ours."""
    import threading

    first = threading.Thread(target=bench.sh, args=("true",))
    first.start()
    first.join()
    assert bench.sh("sleep 0.3; echo alive").exit_code == 0


def test_a_launcher_that_was_killed_is_replaced(bench: Bench) -> None:
    bench.sh("true")
    launch = bench.runner._launch  # type: ignore[attr-defined]
    os.kill(launch._process.pid, signal.SIGKILL)
    launch._process.wait()
    assert bench.sh("true").exit_code == 0
