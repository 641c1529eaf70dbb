"""A git that is newer than the installed one, for tests: taken from Debian's stable release.

Run as a module with a directory to keep it in: prints where its `git` lies. It is unpacked there
with all it needs, and installed nowhere. Where it cannot be had, it says why and prints nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "stable"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SECONDS = 120
_UNUSED = re.compile(r"(perl|liberror|dpkg|debconf|gcc-|lib(perl|gdbm|db5|crypt1))")
# Programs are started by the loader that came with them, which knows its own libraries.
_WRAPPER = """#!/bin/sh
export GIT_EXEC_PATH={programs} GIT_TEMPLATE_DIR={root}/usr/share/git-core/templates
exec {loader} --library-path {libraries} --argv0 "$0" {program} "$@"
"""


class Unobtainable(Exception):
    """There is no newer git to be had, and why."""


def newer_git(place: Path) -> Path:
    """The directory with it. Raises Unobtainable."""
    programs = place / "bin"
    if not programs.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        root = place / "root"
        for package in _download(place):
            _run("dpkg-deb", "-x", str(package), str(root))
        for folder in ("lists", "cache"):
            shutil.rmtree(place / folder)
        _wrap(root, programs)
    theirs, ours = (_version(git) for git in (programs / "git", Path("git")))
    if theirs <= ours:
        raise Unobtainable(f"{SUITE} has {_dotted(theirs)}, and {_dotted(ours)} is installed")
    return programs


def _download(place: Path) -> list[Path]:
    """git and all it needs, as packages: the mirror is the one that this machine is set to."""
    listed = _run(
        "apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"
    )
    mirrors = re.findall(r"^Debian (\S+)$", listed, re.MULTILINE)
    if not mirrors:
        raise Unobtainable("this machine knows no mirror of Debian")
    sources = place / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirrors[0]} {SUITE} main\n")
    (place / "status").touch()  # nothing is installed there
    archives = place / "cache" / "archives"
    for folder in (archives / "partial", place / "lists" / "partial"):
        folder.mkdir(parents=True)
    settings: dict[str, object] = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": place / "lists",
        "Dir::State::status": place / "status",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "",
        "APT::Get::List-Cleanup": "false",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    _run("apt-get", *options, "update", "-qq")
    needed = _run(
        "apt-get", *options, "install", "-qq", "--no-install-recommends", "--print-uris", "git"
    )
    names = [line.split()[1].split("_")[0] for line in needed.splitlines() if ".deb" in line]
    wanted = [name for name in names if not _UNUSED.match(name)]
    _run("apt-get", *options, "download", "-qq", *wanted, cwd=archives)
    return sorted(archives.glob("*.deb"))


def _wrap(root: Path, programs: Path) -> None:
    """Make programs of what was unpacked that run with the libraries unpacked beside them."""
    loaders = sorted(root.glob("usr/lib/*/ld-linux-*.so.*"))
    if not loaders:
        raise Unobtainable("there is no loader among its libraries")
    building = programs.with_name("building")
    building.mkdir()
    core = root / "usr" / "lib" / "git-core"
    binaries = {"git": root / "usr/bin/git", **{p.name: p for p in core.glob("git-remote-http*")}}
    for name, program in binaries.items():
        text = _WRAPPER.format(
            root=root,
            programs=programs,
            loader=loaders[0],
            libraries=loaders[0].parent,
            program=program.resolve(),
        )
        (building / name).write_text(text)
        (building / name).chmod(0o755)
    for program in core.iterdir():
        if program.is_file() and program.name not in binaries and not program.is_symlink():
            (building / program.name).symlink_to(program)
    building.rename(programs)


def _version(git: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", _run(str(git), "version"))[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _run(*command: str, cwd: Path | None = None) -> str:
    """Raises Unobtainable."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unobtainable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Unobtainable(f"{command[0]} failed: {said[-1] if said else done.returncode}")
    return done.stdout


def main() -> None:
    try:
        print(newer_git(Path(sys.argv[1]).resolve()))
    except Unobtainable as why:
        print(f"the installed git is the only one the tests run with: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
