"""What the commands of the command line share: which deployment they act on, and how they answer.

Used by the cli modules only. Loads nothing that a command does not use.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.config import Config, read_config
from ci_platform.model import Json


def lazy(name: str) -> ModuleType:
    """A module that loads when it is first used: no command waits for what another needs.

    importlib's own recipe.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    package, _, short = name.rpartition(".")
    setattr(sys.modules[package], short, module)  # as an import statement would
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from ci_platform.cli import client, console, terminal
else:
    client, console, terminal = map(
        lazy, ("ci_platform.cli.client", "ci_platform.cli.console", "ci_platform.cli.terminal")
    )

DONE, RUN_FAILED, USAGE, REFUSED, PLATFORM_FAILED = range(5)  # exit codes

Name = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id: run_…")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="K=V", help="A parameter; V is JSON, else text."),
]


@dataclass(frozen=True, slots=True)
class Door:
    """Which deployment a command acts on, and how it answers."""

    data: Path | None
    url: str | None
    token: str | None
    json: bool

    def config(self, **given: Json) -> Config:
        if self.data is not None:
            given["data"] = self.data
        return read_config(**{name: value for name, value in given.items() if value is not None})

    @contextlib.contextmanager
    def open(self) -> Iterator[client.Client]:
        if self.url is not None:
            with client.Client.remote(self.url, self.token) as remote:
                yield remote
            return
        with console.local_client(self.config()) as inside:
            yield inside


def wants_json(context: typer.Context, here: bool) -> bool:
    return here or bool(context.obj.json)


def show(context: typer.Context, value: Json, as_json: bool, text: str) -> None:
    if wants_json(context, as_json):
        terminal.print_json(value)
    else:
        sys.stdout.write(text + "\n")


def params_of(pairs: list[str] | None) -> dict[str, Json]:
    """`k=v` options: v is JSON where it can be read as such, else text."""
    params: dict[str, Json] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not K=V")
        try:
            params[key] = json.loads(value)
        except ValueError:
            params[key] = value
    return params


def parse_json(text: str, what: str) -> Json:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from error
