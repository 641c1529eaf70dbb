"""Sluice beside other durable engines: the same measures, one engine after the other, in one run.

The peers run their code unprotected in the process of their library or service; ours runs in the
sandbox. Every database syncs every commit. Which versions, and how each is asked, is in install.py
and programs/. A peer that cannot be had, or fails, is a row that says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.databases import EMBEDDED, SCALED, database
from bench.measure import Result, latency, missing, rate
from bench.peers import ours
from bench.peers.install import PEERS, NotInstalled, Peer, install, restate_server

PROGRAM_SECONDS = 240
_STORE = "its own store"


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that all are asked. `lower` is better, or higher is."""

    name: str
    what: str
    n: int
    lower: bool = True


MEASURES = (
    Measure("completed", "3-step runs completed", 1000, lower=False),
    Measure("create_to_done", "create to done, one 3-step run", 100),
    Measure("created", "runs created, durably", 2000, lower=False),
    Measure("event_to_done", "event sent to run done", 50),
    Measure("timers", "timers due at once, all done", 1000),
    Measure("waiting", "memory added by waiting runs", 2000),
)


def peers() -> list[Result]:
    rows: list[Result] = []
    pythons = {peer: _installed(peer) for peer in PEERS}
    for measure in MEASURES:
        own = [_ours(measure, kind) for kind in (EMBEDDED, SCALED)]
        rows += own
        for peer, python in pythons.items():
            for kind in _databases(peer):
                row = _theirs(measure, peer, python, kind)
                rows.append(_compared(row, own[0], lower=measure.lower))
    return rows


def _installed(peer: Peer) -> Path | str:
    """Its Python, or why there is none."""
    try:
        return install(peer)
    except NotInstalled as error:
        return f"not installed: {error}"


def _databases(peer: Peer) -> tuple[str, ...]:
    return {
        "dbos_program.py": (EMBEDDED, SCALED),
        "absurd_program.py": (SCALED,),
        "restate_program.py": (_STORE,),
    }[peer.program]


def _ours(measure: Measure, kind: str) -> Result:
    what = f"{measure.what}: Sluice, {kind}"
    print(what, file=sys.stderr, flush=True)
    try:
        return _row(what, ours.measure(kind, measure.name, measure.n))
    except (RuntimeError, TimeoutError) as error:
        return missing(what, f"failed: {error}"[:200])


def _theirs(measure: Measure, peer: Peer, python: Path | str, kind: str) -> Result:
    what = f"{measure.what}: {peer.name}, {kind}"
    print(what, file=sys.stderr, flush=True)
    if isinstance(python, str):
        return missing(what, python)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sluice-peer-") as directory,
            database(SCALED if kind == SCALED else EMBEDDED) as url,
        ):
            given = url or f"sqlite:///{directory}/peer.db"
            if kind == _STORE:
                given = str(restate_server(python))
            return _row(what, _program(measure, peer, python, given, directory))
    except (NotInstalled, RuntimeError, subprocess.TimeoutExpired) as error:
        return missing(what, f"failed: {error}"[:200])


def _program(
    measure: Measure, peer: Peer, python: Path, url: str, directory: str
) -> Mapping[str, object]:
    program = Path(__file__).parent / "programs" / peer.program
    command = [str(python), "-W", "ignore", str(program), measure.name, "--n", str(measure.n)]
    done = subprocess.run(
        [*command, "--url", url, "--dir", directory],
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
        cwd=directory,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not answers:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise RuntimeError(said[-1])
    return dict(json.loads(answers[-1].removeprefix("RESULT ")))


def _row(what: str, answer: Mapping[str, object]) -> Result:
    each, n, seconds, mib = (answer.get(name) for name in ("each", "n", "seconds", "mib"))
    if isinstance(each, list):
        return latency(what, each)
    assert isinstance(n, int)
    if isinstance(mib, (int, float)):
        return Result(what, max(0.0, mib), "MiB", n)
    assert isinstance(seconds, (int, float))
    if what.startswith("timers"):
        return Result(what, seconds, "s", n)
    return rate(what, n, seconds)


def _compared(row: Result, own: Result, *, lower: bool) -> Result:
    """The peer's row with how many times better ours on the embedded database is."""
    if row.value is None or own.value is None:
        return row
    least = 1.0 if row.unit == "MiB" else 1e-9  # below a MiB there is nothing to compare
    one, other = (own.value, row.value) if lower else (row.value, own.value)
    better = max(other, least) / max(one, least)
    return replace(row, note=f"ours {better:.2f}x as good")
