"""`python -m bench [NAME ...] [--json FILE] [--against FILE]`: run these benchmarks, or all."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from bench.bombs import bombs
from bench.browser import log_latency
from bench.commands import commands
from bench.engine import events, push_to_first_step, steps, throughput
from bench.git import git_store
from bench.growth import growth
from bench.imports import imports
from bench.load import load
from bench.measure import Result, as_json, compared, machine, missing, show
from bench.peers import peers
from bench.repos import repositories
from bench.sandbox import cold_start
from bench.waiting import timers, waiting

ALL: dict[str, Callable[[], list[Result]]] = {
    "sandbox": cold_start,
    "push": push_to_first_step,
    "steps": steps,
    "throughput": throughput,
    "events": events,
    "timers": timers,
    "waiting": waiting,
    "load": load,
    "growth": growth,
    "peers": peers,
    "browser": log_latency,
    "git": git_store,
    "repos": repositories,
    "imports": imports,
    "commands": commands,
    "bombs": bombs,
}


def main(arguments: Sequence[str]) -> int:
    asked = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    asked.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ALL))
    asked.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    asked.add_argument("--against", type=Path, metavar="FILE", help="say ratios to such a file")
    given = asked.parse_args(arguments)
    unknown = [name for name in given.names if name not in ALL]
    if unknown:
        asked.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(ALL)}")
    if shutil.which("git") is None:
        asked.error("the benchmarks need the git client")
    before = None if given.against is None else json.loads(given.against.read_text())
    where = machine()
    results: list[Result] = []
    for name in given.names or ALL:
        print(f"{name} ...", file=sys.stderr, flush=True)
        begun = time.monotonic()
        try:
            results += ALL[name]()
        except (httpx.HTTPError, TimeoutError, RuntimeError) as error:
            results.append(missing(name, f"failed: {error}"[:200]))
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if given.json is not None:  # after each: a run of all takes long, and may be ended
            given.json.write_text(json.dumps(as_json(results, where), indent=1) + "\n")
    show(results if before is None else compared(results, before), where)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
