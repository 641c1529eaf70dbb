"""Real projects taken over: source archives of several versions of three packages, committed one
upon the other, served by `git http-backend`, imported through the API and cloned back.

What comes back is compared with what was there: every object, every ref, the tree, `git fsck`.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

from bench.measure import Result, missing
from bench.server import Server, serving
from tests.integration.git_same import run, served, told

PROJECTS = {
    "six": ("1.10.0", "1.11.0", "1.12.0", "1.14.0", "1.15.0", "1.16.0"),  # a few files, changed
    "pytz": ("2021.3", "2022.7", "2024.1"),  # hundreds of small binary files
    "idna": ("2.8", "2.10", "3.4", "3.7"),  # large generated tables
}
DOWNLOAD_SECONDS_MAX = 120


def imports() -> list[Result]:
    with (
        tempfile.TemporaryDirectory(prefix="imports-bench-") as directory,
        served(Path(directory)) as where,
        serving(workers=1, settings={"SLUICE_PRIVATE_REMOTES": "true"}) as server,
    ):
        return [
            row
            for name, versions in PROJECTS.items()
            for row in _project(Path(directory), name, versions, where=where, server=server)
        ]


def _project(
    root: Path, name: str, versions: tuple[str, ...], *, where: str, server: Server
) -> Iterator[Result]:
    try:
        bare = _history(root, name, versions)
    except (subprocess.SubprocessError, OSError) as error:
        yield missing(f"import of {name}", f"its archives cannot be had: {error}"[:120])
        return
    began = time.perf_counter()
    body = {"url": f"{where}/{bare.name}"}
    server.http.post(f"/api/v1/repos/bench/{name}/import", json=body).raise_for_status()
    took = time.perf_counter() - began
    back = root / f"{name}-back"
    url = server.url.replace("http://", f"http://any:{server.token}@")
    run(root, "clone", "-q", "--mirror", f"{url}/bench/{name}.git", str(back))
    theirs, ours = told(bare), told(back)
    count = len(theirs["objects"])
    yield Result(f"import of {name}, {len(versions)} versions", took, "s", count)
    differing = [what for what, lines in theirs.items() if ours[what] != lines]
    yield Result(
        f"{name}: kinds of answers that differ",
        len(differing),
        "",
        len(theirs),
        bar="0",
        passed=not differing,
        note=" ".join(differing),
    )


def _history(root: Path, name: str, versions: tuple[str, ...]) -> Path:
    """A bare repository with a commit and a tag for each version, oldest first."""
    archives, work = root / f"{name}-archives", root / f"{name}-work"
    run(root, "init", "-q", "-b", "main", str(work))
    for version in versions:
        _download(archives / version, f"{name}=={version}")
        for old in work.iterdir():
            if old.name != ".git":
                rmtree(old) if old.is_dir() else old.unlink()
        (archive,) = (archives / version).iterdir()
        with tarfile.open(archive) as files:
            files.extractall(archives / version, filter="data")
        (top,) = (path for path in (archives / version).iterdir() if path.is_dir())
        for path in top.iterdir():
            path.rename(work / path.name)
        run(work, "add", "-A", "-f")
        run(work, "commit", "-q", "-m", f"{name} {version}")
        run(work, "tag", "-a", "-m", version, f"v{version}")
    bare = root / f"{name}.git"
    run(root, "clone", "-q", "--bare", str(work), str(bare))
    return bare


def _download(into: Path, what: str) -> None:
    command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", what]
    subprocess.run(
        [sys.executable, *command, "--dest", str(into)],
        check=True,
        capture_output=True,
        timeout=DOWNLOAD_SECONDS_MAX,
    )
