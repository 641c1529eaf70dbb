"""What a worker is made of, and how it is set up. Built by the composition root."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ci_platform.engine import Child, Limits
from ci_platform.model import Json, Run, StepKey, WorkerId
from ci_platform.ports import Clock, Store
from ci_platform.ports.granting import Capabilities
from ci_platform.ports.housekeeping import Layers
from ci_platform.ports.repositories import Source
from ci_platform.ports.sandbox import Sandbox
from ci_platform.shell import Runner


@dataclass(frozen=True, slots=True)
class Settings:
    """Times, limits and sizes of a worker. The defaults are `config.py`'s."""

    lease_ms: int = 30_000  # a worker silent for so long loses its runs
    poll_ms: int = 1_000  # the slow net below the bell
    activations_max: int = 10  # runs at once
    operations_max: int = 4  # commands at once
    recalls_max: int = 2  # memoised commands that are looked up at once, beside these
    log_bytes: int = 1 << 30  # kept of one step's output
    drain_ms: int = 10_000  # what executes may take to end when the worker is asked to stop
    housekeep_ms: int = 1_000  # between two looks for leases that ran out and for waiting pushes
    retention_ms: int = 30 * 24 * 3600 * 1000  # of finished runs
    kept_runs: int = 50  # finished ones of each pipeline that stay, however old
    always_hibernate: bool = False  # testing: drop the sandbox at every await
    limits: Limits = field(default_factory=Limits)

    @property
    def activations_each(self) -> int:
        """Runs of one repository at once: it leaves places for those of others, who would wait
        until what it floods the worker with is done."""
        return self.activations_max - self.activations_max // 4


ChildStarter: TypeAlias = Callable[[Run, str, StepKey, Mapping[str, Json]], Child]


def _nothing_pending() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Tools:
    """The parts of the platform that a worker joins."""

    id: WorkerId
    store: Store
    sandbox: Sandbox
    runner: Runner
    source: Source
    clock: Clock
    settings: Settings = field(default_factory=Settings)
    capabilities: Capabilities | None = None  # what code may do beyond its steps
    dispatch_pending: Callable[[], int] = _nothing_pending  # start what pushes ask for
    start_child: ChildStarter | None = None  # creates the run that a step starts
    family_pending: Callable[[], int] = _nothing_pending  # tell parents and children of each other
    supersede_pending: Callable[[], int] = _nothing_pending  # end what newer runs replace
    fire_schedules: Callable[[], int] = _nothing_pending  # start what is due by the clock
    maintain_git: Callable[[], int] = _nothing_pending  # the git store's upkeep
    sync_mirrors: Callable[[], int] = _nothing_pending  # what follows a remote and is due
    forget_sent: Callable[[], int] = _nothing_pending  # what others were told long ago
    layers: Layers | None = None  # stored workspace layers, for their sweep
    host: str = ""  # the machine's name, for people
    labels: tuple[str, ...] = ()
