"""Journals that released versions have written: every later version must replay them.

Each file under a version holds the code, the run and the journal of one scenario, as that version
wrote them. The present guest is given the whole journal but its end, in strict mode: it must take
the same way, ask for nothing new, and end as the run did. Never edit a file; a change that needs
one edited breaks the runs that are asleep in people's databases.

    python -m tests.golden.test_golden VERSION      records the scenarios that have no file yet
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ci_platform.config import Config
from ci_platform.engine.ids import seed_of
from ci_platform.model import (
    Command,
    Entry,
    EntryKind,
    Json,
    Raised,
    RepositoryId,
    Returned,
    RunId,
    SourceFiles,
    StepKey,
    StepKind,
)
from ci_platform.ports.granting import Ask
from ci_platform.ports.sandbox import Activation
from ci_platform.sandbox import SandboxLimits, WasmSandbox
from ci_platform.worker.author_event import author_event
from tests.deployment import deployed
from tests.scenarios.test_scenarios import SCENARIOS, act

HERE = Path(__file__).parent
GOLDEN = sorted(HERE.glob("*/*.json"))
ENDS = {EntryKind.RUN_PASSED, EntryKind.RUN_FAILED, EntryKind.RUN_CANCELLED}
ASKING = {"31_files", "33_ask_around"}  # ask outside of their steps, and so again in a replay


class Silence:
    """An ActivationHost for code that has nothing to ask: all of it is in the journal."""

    def __init__(self) -> None:
        self.asked: list[Command] = []

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        self.asked += commands
        return ()

    def log(self, step: str, stream: str, text: str) -> None:
        """A replay prints nothing that counts."""

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        raise AssertionError(f"a replay asks the platform for {ask}")


def entry_of(data: dict[str, Any]) -> Entry:
    key = data["key"]
    return Entry(
        seq=data["seq"],
        kind=EntryKind(data["kind"]),
        at_ms=data["at_ms"],
        data=data["data"],
        key=None if key is None else StepKey(StepKind(key[0]), key[1], key[2]),
        attempt=data["attempt"],
    )


@pytest.fixture(scope="module")
def sandbox(guest_cache: Path) -> Iterator[WasmSandbox]:
    made = WasmSandbox(SandboxLimits(processes=1), guest_cache)
    yield made
    made.close()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_journal_of_a_released_version_replays(path: Path, sandbox: WasmSandbox) -> None:
    golden = json.loads(path.read_text())
    entries = [entry_of(data) for data in golden["entries"]]
    assert entries[-1].kind in ENDS
    activation = Activation(
        source=SourceFiles(RepositoryId("repo_golden"), "0" * 40, golden["files"], path.stem),
        pipeline=golden["pipeline"],
        event=golden["event"],
        seed=seed_of(RunId(golden["run_id"])),
        entries=entries[:-1],
        strict=True,
    )
    host = Silence()
    outcome = sandbox.activate(activation, host)
    assert host.asked == []
    undone = any(entry.kind is EntryKind.ROLLBACK_STARTED for entry in entries)
    if undone and entries[-1].data["rollback"]["outcome"] == "complete":
        assert isinstance(outcome, Returned), outcome  # its handlers did; how it ends was known
    elif undone:
        assert isinstance(outcome, Raised), outcome
        assert outcome.error.type == entries[-1].data["rollback"]["error"]["type"]
    elif entries[-1].kind is EntryKind.RUN_PASSED:
        assert isinstance(outcome, Returned), outcome
        assert outcome.output == entries[-1].data["output"]
    else:
        assert isinstance(outcome, Raised), outcome
        assert outcome.error.type == entries[-1].data["error"]["type"]


def record(version: str) -> None:
    """Write the journals of the scenarios whose end their code knows of.

    Left out: those that change their code, or ask for something outside of their steps.
    """
    into = HERE / version
    into.mkdir(exist_ok=True)
    for scenario in SCENARIOS:
        expect = json.loads((scenario / "expect.json").read_text())
        text = (scenario / "pipeline.py").read_text()
        path = into / f"{scenario.name}.json"
        pushes = any("push" in action for action in expect.get("script", ()))
        if path.exists() or pushes or scenario.name in ASKING:
            continue
        with (
            tempfile.TemporaryDirectory() as directory,
            deployed(Path(directory) / "data", cache=Config().cache) as deployment,
        ):
            deployment.push({".ci/pipeline.py": text})
            run_id = deployment.start(expect.get("params"), **expect.get("start", {}))
            deployment.work()
            for action in expect.get("script", ()):
                act(deployment, run_id, action, scenario)
            run, entries = deployment.run(run_id), deployment.journal(run_id)
        kinds = [entry.kind for entry in entries]
        undone = EntryKind.ROLLBACK_STARTED in kinds
        if kinds[-1] not in ENDS or (kinds[-1] is EntryKind.RUN_CANCELLED and not undone):
            continue
        golden = {
            "run_id": run_id,
            "pipeline": run.pipeline,
            "files": {".ci/pipeline.py": text},
            "event": author_event(run),
            "entries": [
                asdict(entry) | {"key": [entry.key.kind, entry.key.name, entry.key.occurrence]}
                if entry.key
                else asdict(entry)
                for entry in entries
            ],
        }
        path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
