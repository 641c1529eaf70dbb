"""A host that journals whatever the sandbox asks for, and pipelines to put into it."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ci_platform.model import (
    AbandonStep,
    Command,
    Entry,
    EntryKind,
    FinishAttempt,
    NoteDivergence,
    Outcome,
    Raised,
    RepositoryId,
    Returned,
    SourceFiles,
    StartStep,
    StepKey,
    StepKind,
)
from ci_platform.ports.granting import Ask
from ci_platform.ports.sandbox import Activation
from ci_platform.sandbox import WasmSandbox

START_MS = 1_900_000_000_000
COMMAND = {"exit_code": 0, "outputs": {}, "output_tail": "", "layer": None, "duration_ms": 1}
HEAD = "import asyncio\nfrom pipelines import *\n\nclass CI(Pipeline):\n"


def pipeline(body: str, *, before: str = "") -> str:
    """A pipeline file whose `run` has this body."""
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    return f"{before}{HEAD}    async def run(self, event, step):\n{body}\n"


def source(files: str | Mapping[str, str], *, repository: str = "repo_a") -> SourceFiles:
    texts = {".ci/pipeline.py": files} if isinstance(files, str) else dict(files)
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    return SourceFiles(RepositoryId(repository), "c" * 40, texts, digest)


class Host:
    """A small engine: bodies end as they say, commands pass, everything else waits."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.asked: list[Command] = []
        self.logs: list[tuple[str, str, str]] = []
        self.add(EntryKind.RUN_CREATED)
        self.add(EntryKind.RUN_CLAIMED)

    @property
    def printed(self) -> str:
        return "".join(text for _, _, text in self.logs)

    def add(
        self,
        kind: EntryKind,
        key: StepKey | None = None,
        attempt: int | None = None,
        **data: Any,
    ) -> Entry:
        at_ms = START_MS + 1000 * len(self.entries)
        entry = Entry(len(self.entries) + 1, kind, at_ms, data, key=key, attempt=attempt)
        self.entries.append(entry)
        return entry

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        before = len(self.entries)
        for command in commands:
            self.asked.append(command)
            self._accept(command)
        return self.entries[before:]

    def _accept(self, command: Command) -> None:
        match command:
            case StartStep(key, config):
                self.add(EntryKind.STEP_STARTED, key, 1, config=config)
                if key.kind is StepKind.SH:
                    self.add(EntryKind.STEP_PASSED, key, 1, value=COMMAND)
            case FinishAttempt(key, attempt, value, None):
                early = {} if command.early_ms is None else {"early_ms": command.early_ms}
                self.add(EntryKind.STEP_PASSED, key, attempt, value=value, **early)
            case FinishAttempt(key, attempt):
                assert command.error is not None
                self.add(EntryKind.STEP_FAILED, key, attempt, error=asdict(command.error))
            case AbandonStep(key):
                self.add(EntryKind.STEP_CANCELLED, key, reason="abandoned")
            case NoteDivergence(key, change):
                self.add(EntryKind.DIVERGED, key, change=change)

    def ask(self, ask: Ask) -> Mapping[str, Any]:
        return {"error": {"type": "NotGranted", "message": "this host grants nothing"}}

    def log(self, step: str, stream: str, text: str) -> None:
        self.logs.append((step, stream, text))


def activate(
    sandbox: WasmSandbox, code: str | SourceFiles, host: Host | None = None, **more: Any
) -> Outcome:
    """One activation with the host's journal so far."""
    host = host or Host()
    activation = Activation(
        source=code if isinstance(code, SourceFiles) else source(code),
        pipeline="CI",
        event={"ref": "refs/heads/main", "params": {"n": 1}},
        seed=more.pop("seed", "seed"),
        entries=tuple(host.entries),
        strict=more.pop("strict", True),
        **more,
    )
    found = sandbox.activate(activation, host)
    if isinstance(found, (Returned, Raised)):
        host.next(found.commands)  # what ended together with the code
        found = replace(found, commands=())
    return found
