"""Installs the peers, pinned, below `.bench`: Python packages into an environment of their own,
Restate's server by npm, without running what packages ask to run. Each peer by itself, so that one
that cannot be had here does not take the others along.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.server import SCRATCH

HOME = SCRATCH / "peers"
INSTALL_SECONDS = 600
_DRIVER = "psycopg[binary]==3.3.9"
_RESTATE = "1.7.12"


@dataclass(frozen=True, slots=True)
class Peer:
    """What one peer needs, and the program that measures it."""

    name: str
    program: str
    packages: tuple[str, ...]
    node_package: str | None = None


PEERS = (
    Peer("DBOS 3.4.0", "dbos_program.py", ("dbos==3.4.0", _DRIVER)),
    Peer("absurd 0.5.1", "absurd_program.py", ("absurd-sdk==0.5.1", "absurdctl==0.5.1", _DRIVER)),
    Peer(
        f"Restate {_RESTATE}",
        "restate_program.py",
        ("restate_sdk[serde]==1.3.0", "hypercorn==0.18.0", "httpx", "aiohttp"),
        f"@restatedev/restate-server@{_RESTATE}",
    ),
)


class NotInstalled(Exception):
    """A peer cannot be had here; the message says why."""


def install(peer: Peer) -> Path:
    """Returns the peer's Python. Raises NotInstalled."""
    place = HOME / Path(peer.program).stem
    python = place / "bin" / "python"
    done = place / "installed"
    wanted = " ".join((*peer.packages, peer.node_package or ""))
    if not done.exists() or done.read_text() != wanted:
        _run(sys.executable, "-m", "venv", str(place))
        _run(str(python), "-m", "pip", "install", "--quiet", *peer.packages)
        if peer.node_package is not None:
            quiet = ("--no-audit", "--no-fund", "--ignore-scripts")
            _run("npm", "install", "--prefix", str(place), *quiet, peer.node_package)
        done.write_text(wanted)
    return python


def restate_server(python: Path) -> Path:
    """The binary that came with npm. Raises NotInstalled."""
    packages = python.parent.parent / "node_modules" / "@restatedev"
    found = sorted(packages.glob("restate-server-*/bin/restate-server"))
    if not found:
        raise NotInstalled("its npm package holds no server for this machine")
    return found[0]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise NotInstalled(f"{Path(command[0]).name}: {lines[-1]}")
