"""What others take for the same commands: podman for one, Buildbot from a push to its result.

Buildbot is installed on demand from PyPI below `.bench`, podman by whoever runs the machine. Its
image is made of this machine's own shell, so that nothing is fetched from a registry. A peer that
cannot be had is a row that says why.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Result, latency, missing
from bench.peers.install import NotInstalled, Peer, install
from bench.server import serving

PUSHES = 12
PODMAN_ROUNDS = 15
WAIT_SECONDS = 60
IMAGE = "localhost/sluice-bench:1"
_BUILDBOT = "4.3.0"
_STEPS = ("echo one", "echo two", "echo three")
_PIPELINE = f"""
from pipelines import Pipeline, on_push

class Bench(Pipeline):
    triggers = [on_push()]
    async def run(self, event, step):
        for number, script in enumerate({_STEPS!r}):
            await step.sh(f"step-{{number}}", script)
"""
_MASTER = """
from buildbot.plugins import changes, schedulers, steps, util, worker

marker = ["sh", "-c", util.Interpolate("touch {base}/done-%(prop:got_revision)s")]
run = [steps.ShellCommand(command=["sh", "-c", one]) for one in {steps!r}]
c = BuildmasterConfig = {{}}
c["workers"] = [worker.Worker("w", "w")]
c["protocols"] = {{"pb": {{"port": "tcp:{port}:interface=127.0.0.1"}}}}
c["change_source"] = [changes.PBChangeSource(user="hook", passwd="hook")]
c["builders"] = [util.BuilderConfig(name="b", workernames=["w"], factory=util.BuildFactory(
    [steps.Git(repourl="{base}/bare.git", branch="main"), *run, steps.ShellCommand(command=marker)]
))]
c["schedulers"] = [schedulers.SingleBranchScheduler(
    name="s", change_filter=util.ChangeFilter(branch="main"), treeStableTimer=None,
    builderNames=["b"])]
c["buildbotNetUsageData"] = None
c["db"] = {{"db_url": "sqlite:///state.sqlite"}}
"""
_HOOK = """#!/bin/sh
while read old new ref; do
  {buildbot} sendchange --master 127.0.0.1:{port} --auth hook:hook --who bench --branch main \\
    --revision $new --vc git file
done
"""


# --- podman ---------------------------------------------------------------------------------------


def podman() -> list[Result]:
    what = "true: podman run, image of this machine's shell"
    if shutil.which("podman") is None:
        return [missing(what, "podman is not installed")]
    try:
        subprocess.run(
            ["podman", "import", "--quiet", "-", IMAGE],
            input=small_image(),
            capture_output=True,
            check=True,
        )
        runtime = _runtime()
        times = []
        for _ in range(PODMAN_ROUNDS):
            began = time.perf_counter()
            subprocess.run([*runtime, "true"], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
    except (subprocess.CalledProcessError, NotInstalled) as error:
        return [missing(what, f"podman does not run here: {error}"[:150])]
    return [latency(what, times)]


def _runtime() -> list[str]:
    """How podman runs a command here: by the first runtime that works on this machine."""
    said = ""
    for name in ("crun", "runc"):
        command = ["podman", "--runtime", name, "run", "--rm", "--network", "none"]
        command += ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024", IMAGE]
        done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return command
        said = done.stderr.strip()
    raise NotInstalled(said)


def small_image() -> bytes:
    """A tar with a shell, the programs of coreutils, and the libraries they need."""
    names = [shutil.which(one) for one in ("sh", "true", "cat", "touch", "sleep", "ls", "env")]
    programs = [Path(name).resolve() for name in names if name]
    listed = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, check=True
    )
    words = {word for word in listed.stdout.split() if word.startswith("/") and word[-1] != ":"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in sorted({*words, *(one for one in names if one)}):
            archive.add(Path(name).resolve(), name)
    return packed.getvalue()


# --- a push to its result -------------------------------------------------------------------------


def push_to_result() -> Result:
    what = "git push to the end of three commands: Sluice"
    with serving() as server, tempfile.TemporaryDirectory() as directory:
        server.http.post("/api/v1/repos", json={"owner": "bench", "name": "push"})
        remote = server.url.replace("://", f"://any:{server.token}@") + "/bench/push.git"

        def result(commit: str) -> None:
            runs = server.http.get("/api/v1/repos/bench/push/runs").json()["runs"]
            run = server.wait(runs[0]["id"])
            if run["state"] != "passed":
                raise RuntimeError(f"a run ended as {run['state']}: {run.get('error')}")

        files = {".ci/pipeline.py": _PIPELINE}
        return latency(what, _pushed(Path(directory), remote, files, result))


def buildbot() -> Result:
    what = f"git push to the end of three commands: Buildbot {_BUILDBOT}, no sandbox"
    packages = (f"buildbot=={_BUILDBOT}", f"buildbot-worker=={_BUILDBOT}", "setuptools<81")
    try:
        python = install(Peer(f"Buildbot {_BUILDBOT}", "buildbot_master.py", packages))
    except NotInstalled as error:
        return missing(what, f"not installed: {error}")
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        try:
            with _buildbot(base, python.parent):

                def result(commit: str) -> None:
                    _appears(base / f"done-{commit}")

                (base / "clone").mkdir()
                times = _pushed(base / "clone", str(base / "bare.git"), {}, result)
        except (subprocess.CalledProcessError, TimeoutError) as error:
            return missing(what, f"it does not run here: {error}"[:150])
    return latency(what, times)


@contextlib.contextmanager
def _buildbot(base: Path, programs: Path) -> Iterator[None]:
    """A master, a worker, and a repository whose hook tells the master of each push."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    master, worker = base / "master", base / "worker"

    def run(*command: str | Path) -> None:
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)

    run("git", "init", "-q", "--bare", "-b", "main", base / "bare.git")
    hook = base / "bare.git/hooks/post-receive"
    hook.write_text(_HOOK.format(buildbot=programs / "buildbot", port=port))
    hook.chmod(0o755)
    run(programs / "buildbot", "create-master", master)
    (master / "master.cfg").write_text(_MASTER.format(base=base, port=port, steps=_STEPS))
    run(programs / "buildbot-worker", "create-worker", worker, f"127.0.0.1:{port}", "w", "w")
    run(programs / "buildbot", "start", master)
    try:
        run(programs / "buildbot-worker", "start", worker)
        try:
            yield
        finally:
            run(programs / "buildbot-worker", "stop", worker)
    finally:
        run(programs / "buildbot", "stop", master)


def _appears(path: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no result of a push after {WAIT_SECONDS} s")
        time.sleep(0.005)


def _pushed(
    clone: Path, remote: str, files: dict[str, str], result: Callable[[str], None]
) -> list[float]:
    """Push commits one after the other; from each push to its result. The first does not count."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(clone), "-c", "user.name=b", "-c", "user.email=b@b"]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    for name, text in files.items():
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text(text)
    times = []
    for number in range(PUSHES + 1):
        (clone / "file").write_text(str(number))
        git("add", "-A")
        git("commit", "-qm", str(number))
        commit = git("rev-parse", "HEAD")
        began = time.perf_counter()
        git("push", "-q", remote, "main")
        result(commit)
        times.append(time.perf_counter() - began)
    return times[1:]
