"""`sluice demo --auto`, whole: server, git push, run, approval, end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow


def test_the_demo_runs_to_its_end_and_leaves_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    command = [sys.executable, "-m", "ci_platform.cli", "demo", "--auto", "--dir", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "remote: sluice: run #1 started, http://127.0.0.1:" in done.stderr
    assert "approving deploy to production through the API" in done.stdout
    for step in ("plan", "compile", "test", "build", "deploy to production", "deploy"):
        assert f"          {step} " in done.stdout
    assert "ms from claim to first step" in done.stdout
    left = [one for one in psutil.process_iter(["cmdline"]) if str(directory) in _words(one)]
    assert left == []


def _words(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())
