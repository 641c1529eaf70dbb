"""What people see in a terminal: tables, a run as it happens, durations. Prints, decides nothing.

Text that comes from pipelines is shown with its colours, but no other control sequence of it
reaches the terminal. Called by main.py, demo.py and local.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ci_platform.cli.watch import step_key
from ci_platform.model import Json
from ci_platform.scheduling import AHEAD_MAX

STYLES = {
    "queued": "dim",
    "running": "blue",
    "waiting": "yellow",
    "paused": "yellow",
    "passed": "green",
    "failed": "red",
    "errored": "magenta",
    "cancelled": "dim",
}
MARKS = {
    "queued": "○",
    "running": "▸",
    "waiting": "⧗",
    "paused": "‖",
    "passed": "✓",
    "failed": "✗",
    "errored": "!",
    "cancelled": "−",
}
LABEL_WIDTH_MAX = 24
PIPE_WIDTH = 10_000  # columns
ENTRY_CHARS_MAX = 500  # of an entry's data in a terminal; --json has all of it
# Everything an escape may begin except SGR (colours); and control characters but tab and escape.
_ESCAPES = re.compile(
    r"\x1b(?:\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]?|[\]PX^_].*?(?:\x07|\x1b\\|$)|[^\[\]PX^_]|$)"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


def console(*, stderr: bool = False) -> Console:
    """Standard output or error. In a pipe nothing is cut: lines are as long as they are."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=width)


def plain(text: str) -> str:
    """Text of a pipeline, safe to write to a terminal: colours stay, all other control goes."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.rpartition("\r")[2] or text))


def duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3m 04s`, `2h 05m`, `3d 04h`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def elapsed(begin: str | None, end: str | None) -> str:
    """The time between two instants of the API; until now if there is no end."""
    if begin is None:
        return ""
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return duration(max(0.0, (until - datetime.fromisoformat(begin)).total_seconds()))


def state_text(state: str, reason: str | None = None) -> Text:
    words = f"{MARKS.get(state, '?')} {state}" + (f" ({reason})" if reason else "")
    return Text(words, style=STYLES.get(state, ""))


def print_json(value: Json) -> None:
    """Machine-readable output, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], empty: str) -> None:
    """A listing; `empty` says what to do when there is nothing in it."""
    out = console()
    if not rows:
        out.print(empty, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column is not columns[-1])
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    out.print(table)


def print_runs(runs: Sequence[Json], *, empty: str) -> None:
    rows = [
        (
            f"#{run['number']}",
            state_text(run["state"], run["reason"] or _held(run)),
            run["pipeline"],
            run["ref"].removeprefix("refs/heads/").removeprefix("refs/tags/"),
            run["commit"][:8],
            elapsed(run["started_at"], run["ended_at"]),
            run["id"],
        )
        for run in runs
    ]
    print_table(("", "STATE", "PIPELINE", "REF", "COMMIT", "TOOK", "ID"), rows, empty)


def _held(run: Json) -> str | None:
    """Why a queued run is not taken yet, in a word or two."""
    if run["state"] != "queued" or not run["waits"]:
        return None
    wait = run["waits"][0]
    return f"waits for group {wait['name']}" if wait["kind"] == "group" else "at a limit"


def print_system(system: Json) -> None:
    """The queue, and who is there to work."""
    counts = ", ".join(f"{count:,} {state}" for state, count in system["runs"].items())
    console().print(f"{counts}; {system['due']:,} due now\n", markup=False)
    rows = [
        (
            worker["worker"],
            str(worker["runs"]),
            f"{worker['operations']} of {worker['capacity']}",
            worker["started_at"],
            ", ".join(worker["labels"]),
            _seen(worker),
        )
        for worker in system["workers"]
    ]
    columns = ("WORKER", "RUNS", "COMMANDS", "STARTED", "LABELS", "LAST SEEN")
    print_table(columns, rows, "No worker is there: runs stay queued. Start one: sluice worker")


def _seen(worker: Json) -> str:
    seen = str(worker["last_seen_at"])
    if not worker["alive"]:
        return f"silent since {seen}"
    return f"draining, {seen}" if worker["draining"] else seen


def print_run(run: Json) -> None:
    """One run: its state, what it waits for, its steps."""
    out = console()
    head = Text(f"#{run['number']} {run['pipeline']} ", style="bold")
    out.print(head.append_text(state_text(run["state"], run["reason"])))
    out.print(f"{run['url']}\n", markup=False, style="dim")
    _print_history(out, run)
    for one in run["stuck"]:
        out.print(f"{one['step']} waits: {one['reason']}", markup=False, style="yellow")
    if run["queue"]:
        out.print(_queue_text(run["queue"]), markup=False, style="yellow")
    for wait in run["waits"] if not run["queue"] else ():
        until = f", until {wait['until']}" if wait["until"] else ""
        out.print(f"waits for {wait['kind']} {wait['name']}{until}", markup=False, style="yellow")
    rows = [
        (
            str(step_key(step)),
            state_text(step["state"]),
            str(step["attempts"]),
            elapsed(step["started_at"], step["ended_at"]),
            _step_note(step),
        )
        for step in run["steps"]
    ]
    columns = ("STEP", "STATE", "ATTEMPTS", "TOOK", "")
    print_table(columns, rows, "It has not started a step yet.")
    if run["error"]:
        out.print("\n".join(plain_lines(error_text(run["error"]))), markup=False, style="red")


def _step_note(step: Json) -> str:
    if step["origin"] is not None:
        return f"from run #{step['origin']['number']}"
    return _queue_text(step["queue"]) if step.get("queue") else ""


def _queue_text(queue: Json) -> str:
    position = int(queue["position"])
    place = f"{AHEAD_MAX:,}+" if position > AHEAD_MAX else str(position)
    return f"{queue['reason']}, number {place} in line"


def _print_history(out: Console, run: Json) -> None:
    """Whose run it does again, and which commits it came to."""
    if run["again"]:
        step = f" from {run['again']['step']} on" if run["again"]["step"] else ""
        out.print(f"does run #{run['again']['number']} again{step}", markup=False, style="dim")
    for change in run["changes"]:
        words = [f"went on with commit {change['commit'][:8]}"]
        words += [f"inserted {name}" for name in change["inserted"]]
        words += [f"left out {name}" for name in change["missing"]]
        if change["error"]:
            words = [f"commit {change['commit'][:8]} does not work: {change['error']}"]
        out.print(f"{change['at']} {', '.join(words)}", markup=False, style="dim")


def print_lines(lines: Sequence[Json]) -> None:
    out = console()
    for line in lines:
        out.print(Text.from_ansi(plain(line["text"])))


def print_entry(entry: Json, *, as_json: bool) -> None:
    """One entry of a journal as one line, at once: it may be read by a program."""
    if as_json:
        sys.stdout.write(json.dumps(entry, ensure_ascii=False) + "\n")
    else:
        step = "" if entry["key"] is None else f" {step_key(entry['key'])}"
        data = json.dumps(entry["data"], ensure_ascii=False)
        short = data if len(data) <= ENTRY_CHARS_MAX else data[: ENTRY_CHARS_MAX - 1] + "…"
        sys.stdout.write(plain(f"{entry['seq']} {entry['at']} {entry['kind']}{step} {short}\n"))
    sys.stdout.flush()


def print_checks(found: Sequence[tuple[str, bool, str]]) -> None:
    rows = [
        (name, Text("✓ ok", style="green") if ok else Text("✗ no", style="red"), detail)
        for name, ok, detail in found
    ]
    print_table(("WHAT", "", "DETAIL"), rows, "")


def error_text(error: Json) -> str:
    return str(error.get("traceback") or f"{error['type']}: {error['message']}")


class Ticker:
    """A run as it happens, one line after the other: it works in a pipe and in a CI log too."""

    def __init__(self, out: Console) -> None:
        self.out = out

    def step_began(self, step: Json) -> None:
        origin = step.get("origin")
        if origin is not None:
            shared = Text(f"shared with run #{origin['number']}", style="dim")
            self._line(step_key(step).label, shared)
        elif step["kind"] in ("sh", "do", "service"):
            self._line(step_key(step).label, Text("started", style="dim"))

    def step_queued(self, step: Json) -> None:
        text = state_text(step["state"])
        self._line(step_key(step).label, text.append(f": {step['queue']['reason']}"))

    def lines(self, label: str, lines: Sequence[Json]) -> None:
        for line in lines:
            text = Text.from_ansi(plain(line["text"]))
            if line["stream"] == "note":
                text.stylize("italic dim")
            self._line(label, text)

    def step_ended(self, step: Json) -> None:
        text = state_text(step["state"])
        text.append(f" in {elapsed(step['started_at'], step['ended_at'])}")
        if step["attempts"] > 1:
            text.append(f", attempt {step['attempts']}")
        self._line(step_key(step).label, text)
        if step.get("error"):
            self._error(step["error"])

    def waits(self, run: Json, wait: Json) -> None:
        text = Text(f"{MARKS['waiting']} waiting", style=STYLES["waiting"])
        until = f" until {wait['until']}" if wait["until"] else ""
        text.append(f" ({wait['kind']}){until}", style="dim")
        self._line(wait["name"], text)

    def run_ended(self, run: Json) -> None:
        text = Text(f"run #{run['number']} ", style="bold")
        text.append_text(state_text(run["state"], run["reason"]))
        self.out.print(text)
        if run["error"]:
            self._error(run["error"])
        if run["output"] is not None:
            self.out.print(
                f"output {json.dumps(run['output'], ensure_ascii=False)}", markup=False, style="dim"
            )

    def _line(self, label: str, text: Text) -> None:
        shown = label if len(label) <= LABEL_WIDTH_MAX else label[: LABEL_WIDTH_MAX - 1] + "…"
        line = Text().append(f"{shown:>{LABEL_WIDTH_MAX}} ", style="bold")
        self.out.print(line.append("│ ", style="dim").append_text(text))

    def _error(self, error: Json) -> None:
        for line in plain_lines(error_text(error)):
            self._line("", Text(line, style="red"))


def plain_lines(text: str) -> list[str]:
    return [plain(line) for line in text.rstrip().splitlines()]
