"""The attacks of attacks.py against the runner, as root and as an ordinary user.

The same attacks without a sandbox are the control: an attack that never works proves nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from ci_platform.runner import bubblewrap
from tests.integration.ordinary_user import run_as_user
from tests.integration.siege import BESIDE, besiege

IDENTITIES = ("root", "ordinary user") if os.geteuid() == 0 else ("ordinary user",)
LAUNCHERS = [one for one in ("system", "wheel", "python") if bubblewrap.find(one)]
AS_USER = (
    "import json, sys; from pathlib import Path; from tests.integration.siege import besiege; "
    "print(json.dumps(besiege(Path(sys.argv[1]), sys.argv[2])))"
)

TABLE = Path(__file__).parents[2] / "docs" / "security.md"
IF_THE_KERNEL_HAS_IT = {"socket: SCTP", "input and output ports"}

Found = Mapping[str, str | None]


def attacked(identity: str, directory: Path, launcher: str) -> Found:
    if identity == "ordinary user" and os.geteuid() == 0:
        found: Found = json.loads(run_as_user(AS_USER, launcher, scratch=directory))
        return found
    return besiege(directory, launcher)


@pytest.mark.parametrize("launcher", [*LAUNCHERS, LAUNCHERS[0] + BESIDE])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_attack_is_stopped(identity: str, launcher: str, tmp_path: Path) -> None:
    found = attacked(identity, tmp_path, launcher)
    assert len(found) >= 100
    assert {name: how for name, how in found.items() if how is not None} == {}


def test_the_attacks_work_where_there_is_no_sandbox(tmp_path: Path) -> None:
    found = attacked("ordinary user", tmp_path, "none")
    working = {name for name, how in found.items() if how is not None}
    assert {
        "read the server's key file",
        "read another tenant's workspace",
        "the server's secrets are in some /proc/PID/environ",
        "see the server's processes",
        "signal the server",
        "reach the database on loopback",
        "reach an abstract socket",
        "reach a socket file",
        "new user namespace",
        "new user namespace by clone",
        "add a key",
        "shared memory of the host",
        "run without a filter",
        "io_uring",
    } <= working, working


def documented() -> Mapping[str, str]:
    """Each attack of the table in docs/security.md -> how it went as root and as a user."""
    rows = re.findall(r"^\| (.+?) \| ([.X]) \| ([.X]) \| ([.X]) \|$", TABLE.read_text(), re.M)
    return {name: as_root + as_user for name, _, as_root, as_user in rows}


def test_the_table_of_attacks_is_the_list_of_attacks(tmp_path: Path) -> None:
    found = attacked("ordinary user", tmp_path, LAUNCHERS[0])
    table = documented()
    assert set(found) - IF_THE_KERNEL_HAS_IT == set(table) - IF_THE_KERNEL_HAS_IT
    assert {name for name, outcome in table.items() if outcome != ".."} == set()
