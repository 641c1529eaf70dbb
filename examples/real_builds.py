"""Real builds on a running Sluice, each twice: the second time their steps are taken from memory.

    SLUICE_COMMAND_NETWORK=true SLUICE_COMMAND_TOOLS=$(rustc --print sysroot) sluice serve
    python examples/real_builds.py --data .sluice/serve               # or --url, with SLUICE_TOKEN
    python examples/real_builds.py --data … --only autotools,rust

autotools: c-ares, from the source distribution that bundles it: configure, make, make install.
python: a source distribution with C extensions, its wheel built and imported.
node: `npm ci` of a small project, through the proxy, from the registry that npm is set to here.
rust: a crate without dependencies, built and tested.
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
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

HEAD = """\
import asyncio

from pipelines import Cache, Pipeline, on_push


class Build(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
"""
AUTOTOOLS = """\
        await step.sh("configure", "sh ./configure --disable-tests --prefix=/usr", cache=True)
        await step.sh("make", "make -j2", cache=True)
        await step.sh("install", "make install DESTDIR=$PWD/dist && ls -R dist", cache=True)
"""
PYTHON = """\
        env = {"PYTHONPATH": ".tools"}
        await step.sh(
            "tools",
            "python3 -m pip install -q --no-index --find-links .ci/wheels --target .tools"
            " $(cat .ci/needs.txt)",
            cache=True,
        )
        await step.sh(
            "wheel",
            "python3 -m pip wheel -q --no-index --no-deps --no-build-isolation -w dist .",
            env=env,
            cache=True,
            artifacts=["dist/*.whl"],
        )
        await step.sh(
            "import",
            "python3 -m pip install -q --no-index --target .installed dist/*.whl && cd /tmp &&"
            " PYTHONPATH=/workspace/.installed python3 -c"
            " 'import MODULE; print(MODULE.__file__)'",
            cache=True,
        )
"""
NODE = """\
        await step.sh(
            "npm ci",
            "npm ci --no-audit --no-fund",
            env={"npm_config_registry": "REGISTRY"},
            network=HOSTS,
            cache_dirs={"npm": "~/.npm"},
            cache=Cache(inputs=["package.json", "package-lock.json"]),
        )
        await step.sh("test", "npm test", cache=True)
"""
RUST = """\
        env = {"CARGO_NET_OFFLINE": "true"}
        await step.sh("build", "cargo build --release --locked", env=env, cache=True)
        await step.sh("test", "cargo test --release --locked", env=env, cache=True)
"""
CRATE = """\
use std::collections::BTreeMap;

/// How often each word is in a text, whatever its case.
pub fn words(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for word in text.split(|one: char| !one.is_alphanumeric()).filter(|one| !one.is_empty()) {
        *found.entry(word.to_lowercase()).or_insert(0) += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_counted() {
        let found = super::words("To be, or not to be");
        assert_eq!((found["to"], found["be"], found["or"]), (2, 2, 1));
    }
}
"""
PACKAGE = {
    "name": "example",
    "version": "1.0.0",
    "private": True,
    "scripts": {"test": "tsc --version && eslint --version"},
    "devDependencies": {"typescript": "*", "eslint": "*"},
}
WAIT_SECONDS = 900
DONE = {"passed", "failed", "errored", "cancelled"}


def main() -> int:
    options = _arguments()
    door = ["--data", options.data] if options.data else ["--url", options.url]
    rows = []
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="sluice-example-") as directory:
            rows.append((name, *_built_twice(door, name, PROJECTS[name](Path(directory)))))
    print(f"\n{'project':<12}{'files':>7}{'first':>10}{'second':>10}   steps: first, second time")
    for name, files, (first, once), (second, again) in rows:
        steps = ", ".join(
            f"{step} {took:.1f} s, {again[step]:.2f} s" for step, took in once.items()
        )
        print(f"{name:<12}{files:>7}{first:>8.1f} s{second:>8.2f} s   {steps}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", help="the data directory of a server on this machine")
    where.add_argument("--url", help="the address of a server; its token in SLUICE_TOKEN")
    parser.add_argument("--only", default=",".join(PROJECTS), help="which, by name")
    parser.add_argument("--python-package", default="regex", dest="package")
    options = parser.parse_args()
    os.environ["SLUICE_EXAMPLE_PACKAGE"] = options.package
    return options


def _autotools(into: Path) -> Path:
    tree = _unpacked("gevent", into) / "deps" / "c-ares"
    return _with_pipeline(tree, AUTOTOOLS)


def _python(into: Path) -> Path:
    package = os.environ["SLUICE_EXAMPLE_PACKAGE"]
    tree = _unpacked(package, into)
    wheels = tree / ".ci" / "wheels"
    _pip("download", "--only-binary", ":all:", "--dest", str(wheels), "pip", "setuptools", "wheel")
    names = [wheel.name.split("-")[0] for wheel in sorted(wheels.glob("*.whl"))]
    (tree / ".ci" / "needs.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return _with_pipeline(tree, PYTHON.replace("MODULE", package))


def _node(into: Path) -> Path:
    registry = _told("npm", "config", "get", "registry")
    (into / "package.json").write_text(json.dumps(PACKAGE), encoding="utf-8")
    subprocess.run(["npm", "install", "--silent", "--package-lock-only"], cwd=into, check=True)
    address = urlsplit(registry)
    host = f"{address.hostname}:{address.port}" if address.port else address.hostname
    return _with_pipeline(into, NODE.replace("REGISTRY", registry).replace("HOSTS", repr([host])))


def _rust(into: Path) -> Path:
    subprocess.run(
        ["cargo", "init", "-q", "--lib", "--vcs", "none", "--name", "words"], cwd=into, check=True
    )
    (into / "src" / "lib.rs").write_text(CRATE, encoding="utf-8")
    subprocess.run(["cargo", "generate-lockfile", "-q", "--offline"], cwd=into, check=True)
    return _with_pipeline(into, RUST)


PROJECTS: Mapping[str, Callable[[Path], Path]] = {
    "autotools": _autotools,
    "python": _python,
    "node": _node,
    "rust": _rust,
}


def _unpacked(package: str, into: Path) -> Path:
    """The source distribution of a package."""
    _pip("download", "--no-deps", "--no-binary", package, "--dest", str(into), package)
    (archive,) = into.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(into, filter="data")
    return into / archive.name.removesuffix(".tar.gz")


def _with_pipeline(tree: Path, body: str) -> Path:
    (tree / ".ci").mkdir(exist_ok=True)
    (tree / ".ci" / "pipeline.py").write_text(HEAD + body, encoding="utf-8")
    return tree


Times = tuple[float, Mapping[str, float]]  # of the run, and of each of its steps


def _built_twice(door: list[str], project: str, tree: Path) -> tuple[int, Times, Times]:
    name = f"examples/{project}-{time.strftime('%m%d-%H%M%S')}"
    repository = json.loads(_sluice(*door, "repo", "create", name, "--json"))
    token = os.environ.get("SLUICE_TOKEN") or _sluice(
        *door, "token", "create", "--name", "example", "--scope", "repo:write", "--repo", name
    )
    _git(tree, "init", "-q", "-b", "main")
    _git(tree, "add", "--force", ".")
    _git(tree, "commit", "-q", "-m", f"{project} and a pipeline that builds it")
    files = len(_told("git", "-C", str(tree), "ls-files").splitlines())
    _git(tree, "push", "-q", repository["clone_url"].replace("://", f"://any:{token}@"), "main")
    (pushed,) = json.loads(_sluice(*door, "runs", name, "--json"))
    first = _ended(door, pushed["id"])
    started = json.loads(_sluice(*door, "start", name, "--json"))
    return files, first, _ended(door, started["id"])


def _ended(door: list[str], run_id: str) -> Times:
    """How long a run and its steps took. Exits if it did not pass."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (run := json.loads(_sluice(*door, "show", run_id, "--json")))["state"] not in DONE:
        if time.monotonic() > deadline:
            sys.exit(f"{run_id} still is {run['state']}")
        time.sleep(0.5)
    if run["state"] != "passed":
        print(_sluice(*door, "logs", run_id)[-3000:])
        sys.exit(f"{run_id} {run['state']}: {run['error']}")
    return _took(run), {one["name"]: _took(one) for one in run["steps"]}


def _took(one: Mapping[str, str]) -> float:
    began, ended = (datetime.fromisoformat(one[key]) for key in ("started_at", "ended_at"))
    return (ended - began).total_seconds()


def _sluice(*arguments: str) -> str:
    return _told(sys.executable, "-m", "ci_platform.cli", *arguments)


def _told(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def _git(tree: Path, *arguments: str) -> None:
    person = ["-c", "user.name=Example", "-c", "user.email=example@localhost"]
    subprocess.run(["git", "-C", str(tree), *person, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
