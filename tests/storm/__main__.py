"""`python -m tests.storm [--minutes N] [--seed N] [--postgresql]`: random pipelines on a real
server, whose workers, sandboxes and commands are killed all the time. Each run must end as its plan
foretells, with a journal that keeps the promises of tests/model, and none may be stuck.

The seed draws the pipelines, what people do, and when what is killed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ci_platform.config import Config
from tests.postgres import postgres_server
from tests.storm.storm import storm


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    asked.add_argument("--minutes", type=float, default=10)
    asked.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    store = asked.add_mutually_exclusive_group()  # else SQLite
    store.add_argument("--postgresql", action="store_true", help="on a server of its own")
    store.add_argument("--database-url", help="an empty PostgreSQL database")
    given = asked.parse_args()
    print(f"seed {given.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="sluice-storm-") as directory,
        _postgresql() if given.postgresql else nullcontext(given.database_url) as database_url,
    ):
        outcome = storm(
            Path(directory),
            seed=given.seed,
            seconds=given.minutes * 60,
            cache=Config().cache,
            database_url=database_url,
            tell=lambda text: print(text, flush=True),
        )
        for fault in outcome.faults:
            print(fault)
        if outcome.faults:
            print((Path(directory) / "server.log").read_text()[-6000:])
    print(f"seed {given.seed}: {outcome}")
    return 1 if outcome.faults else 0


@contextmanager
def _postgresql() -> Iterator[str]:
    with postgres_server() as server, server.database() as url:
        yield url


if __name__ == "__main__":
    sys.exit(main())
