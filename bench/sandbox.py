"""How soon the author's first line runs: in a fresh interpreter, and in one that is warm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from bench.measure import Result, latency
from ci_platform.config import Config
from ci_platform.model import Command, Entry, Json, RepositoryId, SourceFiles
from ci_platform.ports.granting import Ask
from ci_platform.ports.sandbox import Activation
from ci_platform.sandbox import SandboxLimits, WasmSandbox

PIPELINE = """
from pipelines import Pipeline

class Bench(Pipeline):
    async def run(self, event, step):
        print("first line")
"""
ROUNDS = 300


class FirstLine:
    """An ActivationHost that notes when the author's first line prints."""

    def __init__(self) -> None:
        self.at = 0.0

    def next(self, commands: Sequence[Command]) -> Sequence[Entry]:
        return ()

    def log(self, step: str, stream: str, text: str) -> None:
        self.at = self.at or time.perf_counter()

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        return {"error": {"type": "NotGranted", "message": "the benchmark grants nothing"}}


def cold_start() -> list[Result]:
    source = SourceFiles(RepositoryId("repo_bench"), "0" * 40, {".ci/pipeline.py": PIPELINE}, "x")
    activation = Activation(source, "Bench", {"params": {}}, "seed", (), strict=True)
    rows = []
    for what, warm, bar_ms in (("cold", 0, 3.0), ("warm", 100, 3.0)):
        sandbox = WasmSandbox(SandboxLimits(warm_uses_max=warm, processes=1), Config().cache)
        try:
            taken = [_first_line(sandbox, activation) for _ in range(ROUNDS)][10:]
        finally:
            sandbox.close()
        rows.append(latency(f"{what} sandbox to first line of author code", taken, bar_ms=bar_ms))
    return rows


def _first_line(sandbox: WasmSandbox, activation: Activation) -> float:
    host = FirstLine()
    before = time.perf_counter()
    sandbox.activate(activation, host)
    return host.at - before
