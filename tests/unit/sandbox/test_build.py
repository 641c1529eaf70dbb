"""The guest's cache: keys, whole and damaged files, locks. No build happens here."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from ci_platform.errors import SandboxUnavailable
from ci_platform.sandbox import build
from ci_platform.sandbox.build import KEPT_BUILDS, ensure_guest, guest_key, is_built


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Builds that take no time, noted."""
    done: list[Path] = []

    def fake(path: Path, report: build.Progress) -> None:
        report(0.5, "building the sandbox")
        done.append(path)
        path.write_bytes(b"code")
        digest = hashlib.sha256(b"code").hexdigest()
        path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))

    monkeypatch.setattr(build, "_build", fake)
    return done


def test_a_guest_is_built_once_and_then_found(built: list[Path], tmp_path: Path) -> None:
    said: list[tuple[float, str]] = []
    first = ensure_guest(tmp_path / "new" / "cache", lambda *each: said.append(each))
    assert said == [(0.5, "building the sandbox"), (1.0, "sandbox ready")]
    assert ensure_guest(tmp_path / "new" / "cache") == first
    assert len(built) == 1


def test_whether_a_guest_is_built_is_told_without_building_it(
    built: list[Path], tmp_path: Path
) -> None:
    assert not is_built(tmp_path)
    guest = ensure_guest(tmp_path).path
    assert is_built(tmp_path)
    guest.with_suffix(".json").unlink()
    assert not is_built(tmp_path)
    assert len(built) == 1


@pytest.mark.parametrize("damage", [b"", b"c", b"code2", None])
def test_a_damaged_guest_is_built_again(
    built: list[Path], tmp_path: Path, damage: bytes | None
) -> None:
    found = ensure_guest(tmp_path).path
    if damage is None:
        found.with_suffix(".json").write_text("{")
    else:
        found.write_bytes(damage)
    assert ensure_guest(tmp_path).path.read_bytes() == b"code"
    assert len(built) == 2


def test_two_that_need_the_guest_at_once_build_it_once(
    built: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    build_it = build._build

    def slowly(path: Path, report: build.Progress) -> None:
        inside.set()
        assert go_on.wait(10)
        build_it(path, report)

    monkeypatch.setattr(build, "_build", slowly)
    waiting = threading.Event()
    first = threading.Thread(target=ensure_guest, args=(tmp_path,))
    second = threading.Thread(
        target=ensure_guest, args=(tmp_path, lambda fraction, text: waiting.set())
    )
    first.start()
    assert inside.wait(10)
    second.start()
    assert waiting.wait(10)
    go_on.set()
    first.join()
    second.join()
    assert len(built) == 1


def test_old_builds_are_removed(built: list[Path], tmp_path: Path) -> None:
    for number in range(5):
        old = tmp_path / f"guest-{number}.cwasm"
        old.write_bytes(b"old")
        os.utime(old, (number, number))
        old.with_suffix(".json").write_text("{}")
    kept = ensure_guest(tmp_path).path
    left = sorted(path.name for path in tmp_path.glob("*.cwasm"))
    assert left == sorted(["guest-3.cwasm", "guest-4.cwasm", kept.name])
    assert len(left) == KEPT_BUILDS


def test_the_key_is_of_everything_that_goes_into_a_guest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = guest_key()
    assert guest_key() == key
    monkeypatch.setattr(build, "_cpu", lambda: "another one")
    assert guest_key() != key
    names = {path.name for path in build._inputs()}
    assert {"wire.py", "replay.py", "guest_app.py", "sluice.wit"} <= names


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SandboxUnavailable, match="cannot be kept in"):
        ensure_guest(tmp_path / "file" / "cache")


def test_a_build_that_is_killed_says_by_what() -> None:
    command, said = ["sh", "-c", "echo so far; kill -9 $$"], "building failed: so far\n.*SIGKILL"
    with pytest.raises(SandboxUnavailable, match=said):
        build._watch(command, lambda *each: None, stage="build", text="building", span=(0, 1))


def test_a_guest_that_a_process_uses_outlives_newer_builds(
    built: list[Path], tmp_path: Path
) -> None:
    """After an upgrade, workers of the program before still start sandboxes."""
    old = [tmp_path / f"guest-{number}.cwasm" for number in range(KEPT_BUILDS + 2)]
    for number, path in enumerate(old):
        path.write_bytes(b"code")
        os.utime(path, (number, number))
    killed = tmp_path / "build-killed"
    killed.mkdir()
    with build.hold(old[0]):
        ensure_guest(tmp_path)
    assert built
    assert [path.exists() for path in old[:3]] == [True, False, False]
    assert not killed.exists()
