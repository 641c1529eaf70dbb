"""What the programs of the peers share. Standard library only: it runs in the peers' own Python.

A program is called with a measure's name and how many of it to do, and prints one line of JSON:
`{"each": [seconds, …]}` for a latency, `{"n": …, "seconds": …}` for something done n times, or
`{"n": …, "mib": …}` for memory that n waiting instances added.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

NAP_SECONDS = 3600
PATIENCE_SECONDS = 120.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("measure")
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--url", default="")
    parser.add_argument("--dir", default="")
    return parser.parse_args()


def tell(**answer: object) -> None:
    print("RESULT " + json.dumps(answer), flush=True)


def resident_mib(pid: int | str = "self") -> float:
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} is gone")


def until(done: Callable[[], bool], *, look: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done after {PATIENCE_SECONDS:g} s")
        time.sleep(look)
