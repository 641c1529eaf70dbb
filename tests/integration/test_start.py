"""What a server loads before it answers: after a crash, people wait for every module there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ci_platform.cli.guest import build_guest

# `sluice serve` up to the fork of its processes. The last line uses what is loaded lazily.
_START = """
import json, sys
from pathlib import Path
from ci_platform.cli import main
main.guest.build_guest(Path(sys.argv[1]))
main.serve.serve, main.supervise.Supervisor
print(json.dumps(sorted(sys.modules)))
"""
# A terminal's tables and bars, what moves schemas, the HTTP client of the command line.
NEVER = ("rich.console", "rich.table", "alembic", "httpx")


def test_a_server_starts_without_what_only_a_terminal_or_a_migration_needs(
    guest_cache: Path,
) -> None:
    build_guest(guest_cache)
    done = subprocess.run(
        [sys.executable, "-c", _START, str(guest_cache)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(json.loads(done.stdout))
    assert "ci_platform.app" in loaded and "ci_platform.worker" in loaded
    assert loaded.isdisjoint(NEVER), sorted(loaded.intersection(NEVER))
