"""Run a real project's own checks on a running Sluice: lint, its test suite, its wheel.

    python examples/real_project.py --data .sluice/serve              # a server of this machine
    SLUICE_TOKEN=… python examples/real_project.py --url http://…     # or another one
    python examples/real_project.py --data … --package packaging --needs pretend

It downloads the source distribution of a package by name, adds a pipeline, pushes both with git
and waits for the run. Commands of a pipeline have no network, so what they need (pytest, ruff, the
build back end) is downloaded here and committed as wheels, as one would vendor it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

PIPELINE = """\
import asyncio

from pipelines import Pipeline, on_push

TOOLS = {"PYTHONPATH": ".tools", "PYTHONDONTWRITEBYTECODE": "1"}


class Project(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
        await step.sh(
            "tools",
            "python3 -m pip install -q --no-index --find-links .ci/wheels"
            " --target .tools $(cat .ci/needs.txt)",
        )
        await asyncio.gather(
            step.sh(
                "lint",
                "python3 -m ruff check --isolated --select E9,F63,F7,F82 --exclude .tools",
                env=TOOLS,
            ),
            step.sh(
                "test",
                "python3 -m pip install -q --no-index --no-deps --no-build-isolation"
                " --target .installed . && "
                "PYTHONPATH=.installed:.tools python3 -m pytest -q -p no:cacheprovider",
                env=TOOLS,
            ),
        )
        wheel = await step.sh(
            "wheel",
            "python3 -m build --wheel --no-isolation --outdir dist . && "
            'echo "file=$(ls dist/*.whl)" >> "$CI_OUTPUT"',
            env=TOOLS,
        )
        return {"wheel": wheel.outputs["file"]}
"""
TOOLS = ["pip", "pytest", "ruff", "build"]


def main() -> int:
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="sluice-example-") as directory:
        tree = _download(options.package, Path(directory))
        _vendor(tree, options.needs.split())
        _git(tree, "init", "-q", "-b", "main")
        _git(tree, "add", "--force", ".")
        _git(tree, "commit", "-q", "-m", f"{tree.name} and a pipeline that checks it")
        return _push_and_wait(tree, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", help="the data directory of a server on this machine")
    where.add_argument("--url", help="the address of a server; its token in SLUICE_TOKEN")
    parser.add_argument("--package", default="itsdangerous")
    parser.add_argument("--needs", default="freezegun", help="what its tests import, by name")
    return parser.parse_args()


def _download(package: str, into: Path) -> Path:
    """The unpacked source distribution of a package."""
    _pip("download", "--no-deps", "--no-binary", package, "--dest", str(into), package)
    (archive,) = into.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(into, filter="data")
    return into / archive.name.removesuffix(".tar.gz")


def _vendor(tree: Path, needs: list[str]) -> None:
    """Add the pipeline and the wheels it installs from."""
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    backend = project["build-system"]["requires"]
    wanted = [*TOOLS, *backend, *needs, *project.get("project", {}).get("dependencies", [])]
    wheels = tree / ".ci" / "wheels"
    _pip("download", "--only-binary", ":all:", "--dest", str(wheels), *wanted)
    names = [wheel.name.split("-")[0] for wheel in sorted(wheels.glob("*.whl"))]
    (tree / ".ci" / "needs.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (tree / ".ci" / "pipeline.py").write_text(PIPELINE, encoding="utf-8")


def _push_and_wait(tree: Path, options: argparse.Namespace) -> int:
    name = f"examples/{options.package}-{time.strftime('%m%d-%H%M%S')}"
    door = ["--data", options.data] if options.data else ["--url", options.url]
    repository = json.loads(_sluice(*door, "repo", "create", name, "--json"))
    token = os.environ.get("SLUICE_TOKEN") or _sluice(
        *door, "token", "create", "--name", "example", "--scope", "repo:write", "--repo", name
    )
    _git(tree, "push", repository["clone_url"].replace("://", f"://any:{token}@"), "main")
    (run,) = json.loads(_sluice(*door, "runs", name, "--json"))
    command = [sys.executable, "-m", "ci_platform.cli", *door, "logs", "--follow", run["id"]]
    return subprocess.run(command, check=False).returncode


def _sluice(*arguments: str) -> str:
    command = [sys.executable, "-m", "ci_platform.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def _git(tree: Path, *arguments: str) -> None:
    person = ["-c", "user.name=Example", "-c", "user.email=example@localhost"]
    subprocess.run(["git", "-C", str(tree), *person, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
