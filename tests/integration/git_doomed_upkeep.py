"""Joins the packs of a store and kills itself at a chosen stage. Run as a module:
DIRECTORY STAGE [DATABASE_URL OBJECTS_URL]."""

from __future__ import annotations

import sys
from pathlib import Path

import obstore

from git_store import Limits, packs, packwriter, quarantine
from tests.integration.git_doomed import after, doomed_world

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
    directory, stage, *elsewhere = sys.argv[1:]
    world = doomed_world(Path(directory), *elsewhere, limits=LIMITS)
    uploaded = elsewhere and stage == "pack uploaded"
    after(*((obstore, "put") if uploaded else STAGES[stage]))
    world.store.maintain()
    world.close()


if __name__ == "__main__":
    main()
