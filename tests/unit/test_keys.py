"""The deployment's secret and what is derived from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ci_platform.errors import InvalidRequest
from ci_platform.keys import KEY_FILE, derive, master_secret


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    first = master_secret(tmp_path, None)
    assert master_secret(tmp_path, None) == first
    assert len(first) == 64
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_processes_that_start_at_once_agree_on_the_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: master_secret(tmp_path, None), range(32)))
    assert len(found) == 1


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    master_secret(tmp_path, None)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        master_secret(tmp_path, None)


def test_a_configured_secret_needs_no_file(tmp_path: Path) -> None:
    assert master_secret(tmp_path, "s" * 32) == b"s" * 32
    assert list(tmp_path.iterdir()) == []


def test_a_short_configured_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has 5 characters; the least is 32"):
        master_secret(tmp_path, "short")


def test_keys_of_two_purposes_differ() -> None:
    master = b"m" * 64
    assert derive(master, "sessions") == derive(master, "sessions")
    assert derive(master, "sessions") != derive(master, "hooks")
    assert len(derive(master, "hooks")) == 32
