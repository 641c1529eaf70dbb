"""What one sandbox may use. Made from the Config by app.py."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Every limit, with its default and what reaching it means."""

    memory_bytes: int = 256 * MIB  # of the guest's memory; more is a MemoryError in its code
    cpu_seconds: float = 30.0  # of one activation; waiting for the host or a timer does not count
    wall_seconds: float = 900.0  # of one activation, apart from waiting for the host
    describe_seconds: float = 10.0  # of wall time to load a file; a git client waits meanwhile
    value_bytes: int = MIB  # JSON of a step's result, of a run's output
    commands_bytes: int = 32 * MIB  # of one message from the guest
    log_bytes: int = 16 * MIB  # printed in one activation; the rest is left out, and that is said
    processes: int = 4  # sandbox processes; each runs one activation at a time
    uses_max: int = 1000  # activations until a process is replaced
    rss_bytes: int = 512 * MIB  # resident size at which it is replaced earlier
    warm_uses_max: int = 100  # activations of equal code in one interpreter; 0: always a fresh one
    start_seconds: float = 30.0  # for a process to say hello
    rest_seconds: float = 5.0  # without a caller: then a burst is over, and its memory given back
    burst_uses: int = 50  # activations after which a process that rests is replaced by a fresh one

    @property
    def processes_each(self) -> int:
        """Sandbox processes that one repository has at most. Not half of them: while some wait for
        a commit others execute, and the more of them share one, the less a run costs."""
        return self.processes - self.processes // 4
