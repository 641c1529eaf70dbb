"""`sluice worker`: run one, or let one end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from ci_platform.cli.door import AsJson, lazy, show

if TYPE_CHECKING:
    from ci_platform.server import processes
else:
    processes = lazy("ci_platform.server.processes")

worker = typer.Typer(invoke_without_command=True)


@worker.callback()
def run_worker(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Its name on this machine; no two may share one.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="What it has beside its system and architecture: gpu,arm64."),
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="Commands it runs at once [4].")] = None,
) -> None:
    """Run one worker: it executes pipelines and commands. For deployments on several machines."""
    if context.invoked_subcommand is not None:
        return
    processes.run_worker(context.obj.config(labels=labels, operations_max=capacity), name=name)


@worker.command("drain")
def drain_worker(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `sluice system` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Let a worker take nothing new, end or hand back what it does, and end."""
    with context.obj.open() as api:
        found = api.post(f"/api/v1/system/workers/{quote(name, safe='')}/drain", None)
    show(context, found, as_json, f"{found['worker']} drains")
