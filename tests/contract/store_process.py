"""A process of its own for the store's tests; prints one line of JSON when it is done.

python -m tests.contract.store_process DUTY URL NAME
"""

from __future__ import annotations

import json
import sys

from ci_platform.model import RunId, WorkerId
from ci_platform.store import SqlStore, open_store
from tests.contract.conftest import KEY
from tests.contract.store_values import LEASE_MS, append, new_run, note


def drain(store: SqlStore, name: str) -> list[str]:
    """Claim until nothing is left."""
    found: list[str] = []
    misses = 0
    while misses < 5:  # a claim may find all its candidates taken
        claims = store.runs.claim(WorkerId(name), limit=3, lease_ms=LEASE_MS)
        found += [claim.run.id for claim in claims]
        misses = 0 if claims else misses + 1
    return found


def append_50(store: SqlStore, name: str) -> list[str]:
    """Append to one run, deciding again whenever another process was first."""
    run = store.runs.get(RunId("run_one"))
    done = 0
    while done < 50:
        appended = append(store, run, note({"by": name, "n": done}))
        run = appended.run
        done += appended.applied
    return []


def create_20(store: SqlStore, name: str) -> list[str]:
    """Create runs of one repository, half of them those that everyone creates."""
    created = []
    for number in range(10):
        new = [new_run(f"{name}-{number}"), new_run(f"shared-{number}")]
        created += [str(run.number) for run in store.runs.create(new, skip_existing=True)]
    return created


DUTIES = {"drain": drain, "append": append_50, "create": create_20}


def main(duty: str, url: str, name: str) -> None:
    store = open_store(url, key=KEY)
    try:
        print(json.dumps(DUTIES[duty](store, name)))
    finally:
        store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
