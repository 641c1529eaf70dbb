"""Results as values: a table for people, JSON for comparing two commits, percentiles for both.

A row says how often it was measured (n), its p50 or its one value, its p99, and what processor time
one of it cost where that helps: a busy machine stretches wall time, processor time much less.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

SMALL = {"ms": 2, "s": 2, "x": 2, "% of a core": 2}  # digits behind the point; else none


@dataclass(frozen=True, slots=True)
class Result:
    """One row: what was measured, what came out, and the bar of the design, if there is one."""

    what: str
    value: float | None  # p50, a rate, a size; None: it could not be measured, and `note` says why
    unit: str
    n: int = 1
    p99: float | None = None
    bar: str = ""
    passed: bool | None = None  # None: only for comparison
    cpu_ms: float | None = None  # of the server's processes, for one
    note: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values; `share` 0.99 is p99."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def latency(
    what: str,
    seconds: Sequence[float],
    *,
    bar_ms: float | None = None,
    p99_ms: float | None = None,
    cpu_seconds: float | None = None,
) -> Result:
    """A row for a latency whose p50 (and p99, if given) must stay under the bar. `cpu_seconds` is
    what all of them cost together."""
    p50, p99 = percentile(seconds, 0.5) * 1e3, percentile(seconds, 0.99) * 1e3
    n = len(seconds)
    cpu_ms = None if cpu_seconds is None else cpu_seconds * 1e3 / n
    row = Result(what, p50, "ms", n, p99, cpu_ms=cpu_ms)
    if bar_ms is None:
        return row
    bar = f"p50 < {bar_ms:g} ms" + (f", p99 < {p99_ms:g} ms" if p99_ms else "")
    good = p50 < bar_ms and (p99_ms is None or p99 < p99_ms)
    return replace(row, bar=bar, passed=good)


def rate(
    what: str,
    n: int,
    seconds: float,
    *,
    bar: float | None = None,
    cpu_seconds: float | None = None,
) -> Result:
    """A row for how many a second, of `n` in so many seconds."""
    each = n / seconds
    cpu_ms = None if cpu_seconds is None else cpu_seconds * 1e3 / n
    row = Result(what, each, "/s", n, cpu_ms=cpu_ms)
    return row if bar is None else replace(row, bar=f"> {bar:,.0f}/s", passed=each > bar)


def most(what: str, value: float, unit: str, *, bar: float, n: int = 1) -> Result:
    """A row for a value that must stay below its bar."""
    return Result(what, value, unit, n, bar=f"< {_number(bar, unit)}", passed=value < bar)


def missing(what: str, why: str) -> Result:
    """A row for what could not be measured here."""
    return Result(what, None, "", 0, note=why)


def machine() -> dict[str, object]:
    """Where and when it was measured, and how busy the machine was when it began."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": [round(each, 2) for each in os.getloadavg()],
    }


def as_json(results: Sequence[Result], where: dict[str, object]) -> dict[str, object]:
    return {"machine": where, "results": [asdict(result) for result in results]}


def compared(results: Sequence[Result], before: dict[str, object]) -> list[Result]:
    """The rows, each saying what its value and its processor time are of those in the JSON of an
    earlier run."""
    rows = before["results"]
    assert isinstance(rows, list)
    known = {row["what"]: row for row in rows}
    return [_beside(row, known.get(row.what)) for row in results]


def _beside(row: Result, old: dict[str, float | None] | None) -> Result:
    said = [row.note] if row.note else []
    for name, now in (("value", row.value), ("cpu_ms", row.cpu_ms)):
        was = None if old is None else old[name]
        if was and now is not None:
            said.append(f"{'CPU ' if name == 'cpu_ms' else ''}{now / was:.2f}x of before")
    return replace(row, note=", ".join(said))


def show(results: Sequence[Result], where: dict[str, object]) -> None:
    said = ", ".join(f"{name} {value}" for name, value in where.items())
    table = Table(title="Sluice, measured through its own doors", caption=said)
    for column in ("what", "n", "p50 or value", "p99", "CPU each", "bar", ""):
        right = column in ("n", "p50 or value", "p99", "CPU each")
        table.add_column(column, justify="right" if right else "left")
    for row in results:
        table.add_row(*_cells(row))
    Console(width=150).print(table)


def _cells(row: Result) -> Sequence[str]:
    said = {None: row.note, True: "met", False: "missed"}[row.passed]
    if row.passed is not None and row.note:
        said += f" ({row.note})"
    return (
        row.what,
        f"{row.n:,}",
        "-" if row.value is None else _number(row.value, row.unit),
        "" if row.p99 is None else _number(row.p99, row.unit),
        "" if row.cpu_ms is None else f"{row.cpu_ms:.2f} ms",
        row.bar,
        said,
    )


def _number(value: float, unit: str) -> str:
    space = "" if unit in ("x", "/s") else " "
    return f"{value:,.{SMALL.get(unit, 0)}f}{space}{unit}"
