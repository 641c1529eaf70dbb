"""Commands beside a plain subprocess: what the sandbox, the workspace and the output cost.

Each row interleaves the two, so a busy machine blurs the difference little. The rows of an overhead
are what is left after the plain subprocess. Podman and Buildbot are measured beside where they can
be had; see `command_peers.py`.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from obstore.store import LocalStore

from bench.command_peers import buildbot, podman, push_to_result
from bench.measure import Result, latency, percentile
from ci_platform.runner import SandboxRunner, bubblewrap
from ci_platform.shell import CommandResult, CommandSpec

FILES = 5000
CHANGED = 500
OUTPUT_BYTES = 100_000_000
ROUNDS = 60
CHECKOUTS = 15
_CHANGE = f"""
i=0; while [ $i -lt {CHANGED} ]; do echo changed $i > dir$((i / 100))/file$i; i=$((i + 1)); done
echo done
"""


@dataclass(frozen=True, slots=True)
class _Tree:
    """A commit of FILES small files, or of one."""

    count: int

    def export(self, repository_id: str, commit: str, into: Path) -> str:
        for number in range(self.count):
            path = into / f"dir{number // 100}" / f"file{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{number}\n" * (number % 300))
        return hashlib.sha1(str(self.count).encode()).hexdigest()

    def history(self, repository_id: str, commit: str, into: Path, *, depth: int) -> None:
        (into / ".git").mkdir()


@dataclass(slots=True)
class _Machine:
    runner: SandboxRunner
    runs: int = 0
    heard: int = 0
    heard_at: float = 0.0

    def sh(self, script: str, *, fresh: bool = False) -> float:
        """Seconds that a command took; in a workspace of its own if `fresh`."""
        self.runs += fresh
        spec = CommandSpec("bench", f"run_{self.runs}", "sh:bench", "c" * 40, (), script)
        began = time.perf_counter()
        result = self.runner.run(spec, output=self._hear, stop=lambda: False)
        seconds = time.perf_counter() - began
        _check(result)
        return seconds

    def _hear(self, stream: str, data: bytes) -> None:
        self.heard += len(data)
        self.heard_at = time.perf_counter()


def _check(result: CommandResult) -> None:
    if result.exit_code != 0:
        raise RuntimeError(f"a command failed: {result.detail or result.output_tail}")


@contextmanager
def _machine(count: int, **options: object) -> Iterator[_Machine]:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
        place = Path(directory)
        runner = SandboxRunner(
            trees=_Tree(count),
            objects=LocalStore(place / "objects", mkdir=True),
            work_dir=place / "work",
            **options,  # type: ignore[arg-type]
        )
        try:
            yield _Machine(runner)
        finally:
            runner.close()


def commands() -> list[Result]:
    return [*_start(), *_checkout(), *_layer(), *_output(), *podman(), *_pushes()]


def _start() -> list[Result]:
    """`true` in a workspace that is there, by each launcher, beside the plain one."""
    times: dict[str, list[float]] = {"plain": []}
    origins = [one for one in ("system", "wheel", "python") if bubblewrap.find(one)]
    with ExitStack() as opened:
        machines: dict[str, _Machine] = {}
        for origin in origins:
            machines[origin] = opened.enter_context(_machine(1, launcher=origin))
            machines[origin].sh("true")
            times[origin] = []
        for _ in range(ROUNDS):
            times["plain"].append(_plain("true", Path("/")))
            for origin, machine in machines.items():
                times[origin].append(machine.sh("true"))
    plain = percentile(times["plain"], 0.5)
    rows = [latency("true: plain subprocess", times["plain"])]
    for origin in origins:
        over = [max(0.0, one - plain) for one in times[origin]]
        bar = None if origin == "python" else 15.0  # an interpreter's start is above it
        rows.append(latency(f"true: above that, launcher {origin}", over, bar_ms=bar))
    return rows


def _checkout() -> list[Result]:
    rows = []
    for how, overlay in (("overlay", True), ("copy, where there are no overlays", False)):
        with _machine(FILES, overlay=overlay) as machine:
            first = machine.sh("true", fresh=True)
            again = [machine.sh("true", fresh=True) for _ in range(CHECKOUTS)]
            said = machine.runner.probe().facts["workspaces"]
        what = f"checkout of {FILES:,} files"
        if overlay:
            rows.append(Result(f"{what}: first, from the store", first * 1e3, "ms"))
        bar = 50.0 if overlay else None
        row = latency(f"{what}: again, and `true` in it, by {how}", again, bar_ms=bar)
        rows.append(replace(row, note=said if said != "overlays" and overlay else ""))
    return rows


def _layer() -> list[Result]:
    """From the last line of a command that changes files to its result, with the layer stored."""
    after = []
    with _machine(FILES) as machine:
        machine.sh("true", fresh=True)
        for _ in range(CHECKOUTS):
            began = time.perf_counter()
            whole = machine.sh(_CHANGE, fresh=True)
            after.append(began + whole - machine.heard_at)
    return [latency(f"layer of {CHANGED} changed files of {FILES:,}", after, bar_ms=150)]


def _output() -> list[Result]:
    script = f"head -c {OUTPUT_BYTES} /dev/zero"
    speeds, plain = [], []
    with _machine(1) as machine:
        machine.sh("true")
        for _ in range(5):
            plain.append(OUTPUT_BYTES / _plain(script, Path("/")) / 1e6)
            machine.heard = 0
            speeds.append(OUTPUT_BYTES / machine.sh(script) / 1e6)
            assert machine.heard == OUTPUT_BYTES, "all of it came through"
    ours = percentile(speeds, 0.5)
    return [
        Result("100 MB of output: plain subprocess", percentile(plain, 0.5), "MB/s", len(plain)),
        Result("100 MB of output", ours, "MB/s", len(speeds), bar="> 50 MB/s", passed=ours > 50),
    ]


def _plain(script: str, directory: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["/bin/sh", "-e", "-c", script], cwd=directory, capture_output=True, check=True)
    return time.perf_counter() - began


def _pushes() -> list[Result]:
    """The same three steps, from `git push` to the end of the last one."""
    ours, theirs = push_to_result(), buildbot()
    if ours.value and theirs.value:
        theirs = replace(theirs, note=f"{theirs.value / ours.value:.1f}x ours")
    return [ours, theirs]
