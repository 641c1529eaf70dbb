"""Percentiles and the table that `make bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Result:
    """One row: what was measured, what came out, and the bar of the design."""

    what: str
    p50: str
    p99: str
    bar: str
    passed: bool


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values; `share` 0.99 is p99."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def latency(
    what: str, seconds: Sequence[float], *, bar_ms: float, p99_ms: float | None = None
) -> Result:
    """A row for a latency whose p50 (and p99, if given) must stay under the bar."""
    p50, p99 = percentile(seconds, 0.5) * 1e3, percentile(seconds, 0.99) * 1e3
    bar = f"p50 < {bar_ms:g} ms" + (f", p99 < {p99_ms:g} ms" if p99_ms else "")
    good = p50 < bar_ms and (p99_ms is None or p99 < p99_ms)
    return Result(f"{what} (n={len(seconds)})", f"{p50:.2f} ms", f"{p99:.2f} ms", bar, good)


def rate(what: str, per_second: float, *, bar: float) -> Result:
    return Result(what, f"{per_second:,.0f}/s", "", f"> {bar:,.0f}/s", per_second > bar)


def show(results: Sequence[Result]) -> None:
    table = Table(title="Sluice, measured through its own doors")
    for column in ("what", "p50 or value", "p99", "bar", ""):
        table.add_column(column)
    for row in results:
        table.add_row(row.what, row.p50, row.p99, row.bar, "met" if row.passed else "missed")
    Console(width=120).print(table)
