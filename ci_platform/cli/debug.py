"""`sluice debug`: go into the workspace of a step. Part of main.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.cli.door import RUN_FAILED, RunId, lazy

if TYPE_CHECKING:
    from ci_platform.cli import debugging
else:
    debugging = lazy("ci_platform.cli.debugging")

debug = typer.Typer()
PASSED = "exited with code 0"


@debug.command("debug")
def debug_step(
    context: typer.Context,
    run_id: RunId,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A command: build, or build#2.")],
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="Run this, instead of a shell.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A new directory for the workspace as it is at the end.")
    ] = None,
    tools: Annotated[
        list[Path] | None,
        typer.Option(help="A directory that the sandbox may read. May be given again."),
    ] = None,
) -> None:
    """Open a shell where a step ran: the same files, environment and sandbox, without secrets."""
    if command is None and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("there is no terminal here: say what to run with --command")
    request = debugging.Request(run_id, step, command=command, keep=keep, tools=tools or ())
    with context.obj.open() as api:
        how = debugging.debug(api, request, say=lambda line: print(line, file=sys.stderr))
    if how != PASSED:
        print(how, file=sys.stderr)
        raise typer.Exit(RUN_FAILED if command is not None else 0)
