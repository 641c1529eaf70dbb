"""Joins the packs of a store and kills itself at a chosen stage. A module: DIRECTORY STAGE."""

from __future__ import annotations

import sys
from pathlib import Path

from git_store import Limits, packs, packwriter, quarantine
from tests.integration.git_doomed import after
from tests.integration.git_world import GitWorld

LIMITS = Limits(repository_packs=2, inline_pack_bytes=500)
STAGES = {
    "objects copied": (packwriter.PackWriter, "send"),
    "pack rebuilt": (quarantine.Quarantine, "rebuild"),
    "pack uploaded": (packs, "_move_in"),
    "all uploaded": (packs.Packs, "upload"),
    "old packs released": (packs.Packs, "release"),
    "new pack listed": (packs.Packs, "insert"),
}


def main() -> None:
    directory, stage = sys.argv[1:]
    world = GitWorld(Path(directory), limits=LIMITS)
    after(*STAGES[stage])
    world.store.maintain()
    world.close()


if __name__ == "__main__":
    main()
