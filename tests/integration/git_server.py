"""A git server in a process of its own, so that what it takes can be measured. Prints its port."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.integration.git_world import GIT, GitWorld


def main() -> None:
    directory, git = Path(sys.argv[1]), sys.argv[2]
    world = GitWorld(directory, git=GIT if git else None)
    for number in range(4):
        world.store.repositories.create("acme", f"app{number}")
    print(world.port, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
