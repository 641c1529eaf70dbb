"""The git store beside `git http-backend`: the same client, the same work, one after the other.

Each row is a ratio of two measurements made in turn, so a busy machine blurs it little. CPU is the
server's with its child processes; of git's side the bridge in front of it is left out. Memory is
what an operation adds to the server's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from bench.measure import Result, latency, percentile
from bench.server import Server, serving

COMMITS = 12_600  # each a commit, two trees and a file: 50,400 objects
BLOB_BYTES = 200_000_000
REFS = 20_000
SMALL = 100
MEMORY_MIB = 64
_REFS_A_PUSH = 10_000
_SAMPLE_SECONDS = 0.02
_SCHEDULED = 2  # the clock of a process that counts what it ran, in Linux's numbers for clocks


@dataclass(slots=True)
class Cost:
    """What one operation cost its server."""

    wall: float
    cpu: float
    memory: int


@dataclass(slots=True)
class Side:
    """One of the two servers: where its repositories are, and the processes that serve them."""

    name: str
    create: Callable[[str], str]  # a repository's name -> its URL
    root: psutil.Process
    own_cpu: bool  # whether the root's own CPU counts, or that of its children alone
    costs: dict[str, list[Cost]] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                times = process.cpu_times()
                total += times.children_user + times.children_system
                if self.own_cpu or process != self.root:
                    total += _used_seconds(process.pid)
        return total

    def anonymous_bytes(self) -> int:
        return sum(_anonymous(process.pid) for process in self._family())

    def _family(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def measure(self, what: str, work: Callable[[], object]) -> None:
        before_bytes, before_cpu = self.anonymous_bytes(), self.cpu_seconds()
        peak, done = [before_bytes], threading.Event()

        def watch() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                peak.append(self.anonymous_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        try:
            work()
            wall = time.perf_counter() - started
        finally:
            done.set()
            watcher.join()
        cost = Cost(wall, self.cpu_seconds() - before_cpu, max(peak) - before_bytes)
        self.costs.setdefault(what, []).append(cost)


def _used_seconds(pid: int) -> float:
    """What a process has used itself, to the nanosecond: `cpu_times` counts in units of 10 ms,
    which is more than an operation may take."""
    return time.clock_gettime((~pid << 3) | _SCHEDULED)


def _anonymous(pid: int) -> int:
    """Memory of a process that no file backs: what maps of packs cost is the page cache's."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line for line in text.splitlines() if line.startswith("RssAnon:")]
    return int(found[0].split()[1]) << 10 if found else 0


@dataclass(frozen=True, slots=True)
class Bench:
    """Both servers and a directory of the client's own."""

    sides: Sequence[Side]
    alone: Side  # ours, on a machine without git
    directory: Path

    def git(self, *arguments: str, cwd: Path | str = ".", given: bytes | None = None) -> str:
        done = subprocess.run(
            ["git", "-c", "gc.auto=0", *arguments],
            cwd=self.directory / cwd,
            env=_environment(),
            input=given,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"git {arguments[0]} failed: {done.stderr.decode()[-300:]}")
        return done.stdout.decode().strip()

    @property
    def all(self) -> Sequence[Side]:
        return [*self.sides, self.alone]

    def both(
        self,
        what: str,
        work: Callable[[Side], object],
        *,
        rounds: int = 1,
        sides: Sequence[Side] | None = None,
    ) -> None:
        sides = sides or self.sides
        for number in range(rounds):
            for side in sides if number % 2 else reversed(sides):
                side.measure(what, lambda side=side: work(side))  # type: ignore[misc]


def _environment() -> dict[str, str]:
    who = {"NAME": "bench", "EMAIL": "bench@example.org"}
    names = {f"GIT_{role}_{key}": who[key] for role in ("AUTHOR", "COMMITTER") for key in who}
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        **names,
    }


@contextlib.contextmanager
def _both() -> Iterator[Bench]:
    with (
        serving(workers=1) as server,
        _without_git(),
        serving(workers=1) as lone,
        tempfile.TemporaryDirectory(prefix="git-bench-") as place,
    ):
        bare, clients = Path(place, "bare"), Path(place, "clients")
        bare.mkdir()
        clients.mkdir()
        peer = subprocess.Popen(
            [sys.executable, "-m", "bench.git_peer", str(bare)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert peer.stdout is not None
            url = f"http://127.0.0.1:{int(peer.stdout.readline())}"
            yield Bench(
                [
                    _side("ours", server),
                    Side(
                        "git", lambda name: _init(bare, url, name), psutil.Process(peer.pid), False
                    ),
                ],
                _side("alone", lone),
                clients,
            )
        finally:
            peer.terminate()
            peer.wait()


@contextlib.contextmanager
def _without_git() -> Iterator[None]:
    os.environ["SLUICE_GIT_BINARY"] = ""
    try:
        yield
    finally:
        del os.environ["SLUICE_GIT_BINARY"]


def _side(name: str, server: Server) -> Side:
    process = psutil.Process(server.process.pid)
    return Side(name, lambda repository: _create(server, repository), process, True)


def _create(server: Server, name: str) -> str:
    server.http.post("/api/v1/repos", json={"owner": "bench", "name": name}).raise_for_status()
    return server.url.replace("://", f"://any:{server.token}@") + f"/bench/{name}.git"


def _init(bare: Path, url: str, name: str) -> str:
    path = bare / f"{name}.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True)
    subprocess.run(["git", "-C", path, "config", "http.receivepack", "true"], check=True)
    subprocess.run(["git", "-C", path, "config", "uploadpack.allowFilter", "true"], check=True)
    return f"{url}/{name}.git"


# --- what is measured -----------------------------------------------------------------------------


def git_store() -> list[Result]:
    with _both() as bench:
        _small(bench)
        _large(bench)
        _real(bench)
        _blob(bench)
        _many_refs(bench)
        meanwhile = [_meanwhile(bench, side) for side in bench.sides]
        ours, theirs = bench.sides
        alone = bench.alone
    rows = [_row(what, ours.costs[what], theirs.costs[what], bar=_bar(what)) for what in ours.costs]
    rows += [
        _row(f"{what}, without git", alone.costs[what], theirs.costs[what], bar=_ALONE)
        for what in alone.costs
    ]
    return rows + meanwhile


_PUSHES = f"{SMALL} small pushes, 4 at once"
_CLONES = f"{SMALL} small clones, 4 at once"
_COMMIT_PUSH = "push of one commit to 50,000 objects"
_COMMIT_FETCH = "fetch of one commit of 50,000 objects"
_LS_REMOTE = f"ls-remote of {REFS:,} refs"
_SMALL_ONES = {_PUSHES, _CLONES, _COMMIT_PUSH, _COMMIT_FETCH}
_ALONE = (3.0, None)  # at most so many times git's wall time, and its CPU


def _bar(what: str) -> tuple[float, float | None]:
    return (0.5, 0.2) if what in _SMALL_ONES else (1.5, None)


def _row(
    what: str, ours: Sequence[Cost], theirs: Sequence[Cost], *, bar: tuple[float, float | None]
) -> Result:
    wall, their_wall = (percentile([c.wall for c in side], 0.5) for side in (ours, theirs))
    cpu, their_cpu = (sum(c.cpu for c in side) / len(side) for side in (ours, theirs))
    memory = max(cost.memory for cost in ours) >> 20
    wall_bar, cpu_bar = bar
    passed = wall <= wall_bar * their_wall and memory <= MEMORY_MIB
    passed = passed and (cpu_bar is None or cpu <= cpu_bar * their_cpu)
    return Result(
        f"git: {what}: {wall:.2f} s beside {their_wall:.2f} s",
        wall / their_wall,
        "x",
        len(ours),
        bar=f"{wall_bar}x{f', CPU {cpu_bar}x' if cpu_bar else ''}, {MEMORY_MIB} MiB",
        passed=passed,
        cpu_ms=cpu * 1e3,
        note=f"CPU {cpu / max(their_cpu, 0.01):.2f}x of {their_cpu:.2f} s, {memory} MiB",
    )


def _small(bench: Bench) -> None:
    """Repositories as pipelines have them: three commits of a few files."""
    bench.git("init", "-q", "-b", "main", "small")
    for number in range(3):
        for name in ("a.txt", "b/c.txt"):
            path = bench.directory / "small" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{name} {number}\n")
        bench.git("add", "-A", cwd="small")
        bench.git("commit", "-qm", str(number), cwd="small")
    urls = {s.name: [s.create(f"small-{n}") for n in range(SMALL)] for s in bench.sides}
    with ThreadPoolExecutor(4) as pool:

        def push(side: Side) -> None:
            list(
                pool.map(
                    lambda url: bench.git("push", "-q", url, "main", cwd="small"), urls[side.name]
                )
            )

        def clone(side: Side) -> None:
            targets = [f"{side.name}-clone-{n}" for n in range(SMALL)]
            list(
                pool.map(
                    lambda url, to: bench.git("clone", "-q", url, to), urls[side.name], targets
                )
            )

        bench.both(_PUSHES, push)
        bench.both(_CLONES, clone)


def _large(bench: Bench) -> None:
    """A made-up history, pushed, cloned, and then one commit on top of it each way."""
    bench.git("init", "-q", "-b", "main", "large")
    bench.git("fast-import", "--quiet", cwd="large", given=history(COMMITS))
    bench.git("reset", "-q", "--hard", "main", cwd="large")
    urls = {side.name: side.create("large") for side in bench.all}
    bench.both(
        "push of 50,000 objects",
        lambda side: bench.git("push", "-q", urls[side.name], "main", cwd="large"),
        sides=bench.all,
    )
    bench.both(
        "clone of 50,000 objects",
        lambda side: bench.git("clone", "-q", "--bare", urls[side.name], f"{side.name}-large"),
        sides=bench.all,
    )
    bench.both(
        "shallow clone of 50,000 objects",
        lambda side: bench.git(
            "clone", "-q", "--bare", "--depth=1", urls[side.name], f"{side.name}-shallow"
        ),
    )
    for _ in range(10):
        bench.git("commit", "-q", "--allow-empty", "-m", "more", cwd="large")
        bench.both(
            _COMMIT_PUSH,
            lambda side: bench.git("push", "-q", urls[side.name], "main", cwd="large"),
        )
        bench.both(
            _COMMIT_FETCH,
            lambda side: bench.git("fetch", "-q", "origin", "main:main", cwd=f"{side.name}-large"),
        )
    bench.both(
        "clone of them again, in several packs",
        lambda side: bench.git("clone", "-q", "--bare", urls[side.name], f"{side.name}-again"),
    )
    for side in bench.all:  # what a deleted branch leaves behind may not be sent: no pack as it is
        moved = ["main:refs/heads/gone", "+main~5:refs/heads/main"]
        bench.git("push", "-q", urls[side.name], *moved, cwd="large")
        bench.git("push", "-q", urls[side.name], ":refs/heads/gone", cwd="large")
    bench.both(
        "clone of them, chosen one by one",
        lambda side: bench.git("clone", "-q", "--bare", urls[side.name], f"{side.name}-chosen"),
        sides=bench.all,
    )


def _real(bench: Bench) -> None:
    """This project with its full history, where this is a checkout that has it."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return
    bench.git("clone", "-q", "--bare", "--no-local", str(here), "real")
    if (bench.directory / "real" / "shallow").exists():
        return
    urls = {side.name: side.create("real") for side in bench.all}
    bench.both(
        "push of this project's history",
        lambda side: bench.git("push", "-q", urls[side.name], "HEAD:refs/heads/main", cwd="real"),
        sides=bench.all,
    )
    bench.both(
        "clone of this project's history",
        lambda side: bench.git("clone", "-q", "--bare", urls[side.name], f"{side.name}-real"),
        sides=bench.all,
    )


def _meanwhile(bench: Bench, side: Side) -> Result:
    """How long a small request takes while large repositories are pushed and cloned."""
    quick = side.create("quick")
    urls = [side.create(f"busy-{number}") for number in range(3)]

    def push_and_clone(url: str) -> None:
        bench.git("push", "-q", url, "main", cwd="large")
        # What a deleted branch leaves behind makes the packs hold more than is to be sent.
        moved = ["main:refs/heads/gone", "+main~5:refs/heads/main"]
        bench.git("push", "-q", url, *moved, cwd="large")
        bench.git("push", "-q", url, ":refs/heads/gone", cwd="large")
        bench.git("clone", "-q", "--bare", url, f"{side.name}-{url.rpartition('/')[2]}")

    taken = []
    with ThreadPoolExecutor(len(urls)) as pool, httpx.Client() as client:
        working = [pool.submit(push_and_clone, url) for url in urls]
        while not all(one.done() for one in working):
            started = time.perf_counter()
            client.get(f"{quick}/info/refs?service=git-upload-pack").raise_for_status()
            taken.append(time.perf_counter() - started)
            time.sleep(0.02)
        for one in working:
            one.result()
    what = f"git: a small request during 3 large pushes and clones, {side.name}"
    row = latency(what, taken, bar_ms=50, p99_ms=500)
    return row if side.own_cpu else replace(row, bar="", passed=None)


def history(commits: int) -> bytes:
    """A stream for `git fast-import`: each commit changes one file in one of many directories."""
    chance = random.Random(7)
    parts = [b"reset refs/heads/main\n"]
    for number in range(commits):
        path = f"d{chance.randrange(100)}/f{chance.randrange(40)}.txt"
        text = f"{number} {chance.randbytes(200).hex()}\n".encode()
        message = f"change {number}".encode()
        parts.append(
            b"commit refs/heads/main\ncommitter bench <b@example.org> %d +0000\ndata %d\n%s\n"
            b"M 100644 inline %s\ndata %d\n%s\n"
            % (1_600_000_000 + number, len(message), message, path.encode(), len(text), text)
        )
    return b"".join(parts)


def _blob(bench: Bench) -> None:
    work = bench.directory / "blob"
    bench.git("init", "-q", "-b", "main", "blob")
    work.joinpath("blob.bin").write_bytes(random.Random(8).randbytes(BLOB_BYTES))
    bench.git("-c", "core.compression=0", "add", "-A", cwd="blob")
    bench.git("commit", "-qm", "blob", cwd="blob")
    urls = {side.name: side.create("blob") for side in bench.all}
    bench.both(
        "push of a 200 MB file",
        lambda side: bench.git(
            "-c", "core.compression=0", "push", "-q", urls[side.name], "main", cwd="blob"
        ),
        sides=bench.all,
    )
    bench.both(
        "clone of a 200 MB file",
        lambda side: bench.git("clone", "-q", "--bare", urls[side.name], f"{side.name}-blob"),
        sides=bench.all,
    )


def _many_refs(bench: Bench) -> None:
    """The refs come by a push spoken raw: git's own client needs minutes for so many."""
    head = bench.git("rev-parse", "HEAD", cwd="small")
    names = [f"refs/tags/t{number:05}" for number in range(REFS)]
    urls = {side.name: side.create("refs") for side in bench.sides}
    for side in bench.sides:
        bench.git("push", "-q", urls[side.name], "main", cwd="small")
        for at in range(0, REFS, _REFS_A_PUSH):
            _push_refs(urls[side.name], names[at : at + _REFS_A_PUSH], head)
    bench.both(_LS_REMOTE, lambda side: bench.git("ls-remote", urls[side.name]), rounds=5)


def _push_refs(url: str, names: Sequence[str], sha: str) -> None:
    lines = [f"{'0' * 40} {sha} {name}" for name in names]
    lines[0] += "\0report-status"
    body = b"".join(b"%04x%s" % (len(line) + 4, line.encode()) for line in lines) + b"0000"
    pack = b"PACK\0\0\0\2\0\0\0\0"
    kind = {"content-type": "application/x-git-receive-pack-request"}
    content = body + pack + hashlib.sha1(pack).digest()
    answer = httpx.post(f"{url}/git-receive-pack", content=content, headers=kind, timeout=120)
    if answer.status_code != 200 or b"ng " in answer.content:
        raise RuntimeError(f"pushing refs failed: {answer.content[:300]!r}")
