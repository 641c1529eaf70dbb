"""The limits of one command, and the sentence each says when it is exceeded.

Values only; `watch.py` measures and `command.py` acts. Every limit that a person can change names
its setting, so that the message in the log says what to turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from ci_platform.shell import LINE_BYTES_MIN

MIB = 1 << 20
GIB = 1 << 30
SCRIPT_BYTES_MAX = MIB
ENV_VARIABLES_MAX = 1000
ENV_BYTES_MAX = MIB
BASE_LAYERS_MAX = 10_000
OUTPUT_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """What one command may use. `setting` below names the variable behind each."""

    memory_bytes: int = 4 * GIB  # resident, all processes of the command together
    disk_bytes: int = 4 * GIB  # growth of the workspace
    files: int = 500_000  # entries in the workspace
    output_bytes: int = GIB  # standard output and error; of each line LINE_BYTES_MIN
    pids: int = 1024  # processes and threads
    cpu_seconds: int = 14_400  # all processes together
    open_files: int = 4096  # of each process
    tmp_bytes: int = 512 * MIB  # of /tmp and of /home/ci, each; both are in memory
    network_bytes: int = 10 * GIB  # through the proxy, both ways
    cache_bytes: int = 2 * GIB  # of one of cache_dirs, before compression
    artifacts: int = 1000  # files that one command keeps for people
    artifact_bytes: int = GIB  # all of them together
    outputs: int = 100  # names in $CI_OUTPUT
    outputs_bytes: int = MIB  # of $CI_OUTPUT
    grace_seconds: float = 10.0  # between TERM and KILL
    free_bytes: int = 512 * MIB  # with less on its disk, a worker starts no command
    # Of processor and disk beside the platform: idle (what nobody else wants), low or normal.
    priority: str = "idle"


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that a command went over: how it ended, and why in words."""

    limit: str  # CommandResult.ended
    detail: str


def over_memory(used: int, limits: RunnerLimits) -> Excess:
    return _bytes_over("memory", "memory", used, limits.memory_bytes)


def over_disk(used: int, limits: RunnerLimits) -> Excess:
    return _bytes_over("disk", "disk space in the workspace", used, limits.disk_bytes)


def over_output(used: int, limits: RunnerLimits) -> Excess:
    what = f"output, a line counting as {LINE_BYTES_MIN} B at least"
    return _bytes_over("output", what, used, limits.output_bytes)


def over_files(used: int, limits: RunnerLimits) -> Excess:
    return _count_over("files", "files in the workspace", used, limits.files)


def over_artifact(used: int, limits: RunnerLimits) -> Excess:
    return _bytes_over("artifact", "artifacts", used, limits.artifact_bytes)


def over_artifacts(used: int, limits: RunnerLimits) -> Excess:
    return _count_over("artifacts", "artifacts", used, limits.artifacts)


def over_pids(used: int, limits: RunnerLimits) -> Excess:
    return _count_over("pids", "processes and threads", used, limits.pids)


def over_open_files(used: int, limits: RunnerLimits) -> Excess:
    return _count_over("open_files", "open files in one process", used, limits.open_files)


def short_of_disk(free: int, limits: RunnerLimits) -> str:
    """Not where: readers of a run are told this, too."""
    return (
        f"the worker's disk has {in_words(free)} free; commands wait until it has "
        f"{in_words(limits.free_bytes)} (SLUICE_COMMAND_FREE_BYTES)"
    )


def over_network(limits: RunnerLimits) -> str:
    allowed = in_words(limits.network_bytes)
    return f"the step has moved {allowed}; that is the limit (SLUICE_COMMAND_NETWORK_BYTES)"


def over_cpu(used_seconds: float, limits: RunnerLimits) -> Excess:
    detail = (
        f"The command used {used_seconds:.0f} s of processor time; the limit is "
        f"{limits.cpu_seconds} s (SLUICE_COMMAND_CPU_SECONDS)."
    )
    return Excess("cpu", detail)


def over_time(timeout_ms: int) -> Excess:
    return Excess(
        "timeout",
        f"The command ran longer than its timeout of {timeout_ms / 1000:g} s "
        f"(timeout= of step.sh).",
    )


def was_cancelled() -> Excess:
    return Excess("cancelled", "The command was stopped because its step was cancelled.")


def bad_outputs(problem: str) -> Excess:
    return Excess("outputs", f"$CI_OUTPUT cannot be used: {problem}.")


def in_words(size: int) -> str:
    """A number of bytes as people write it: `512 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def _bytes_over(limit: str, what: str, used: int, allowed: int) -> Excess:
    setting = f"SLUICE_COMMAND_{limit.upper()}_BYTES"
    detail = (
        f"The command used {in_words(used)} of {what}; "
        f"the limit is {in_words(allowed)} ({setting})."
    )
    return Excess(limit, detail)


def _count_over(limit: str, what: str, used: int, allowed: int) -> Excess:
    setting = f"SLUICE_COMMAND_{limit.upper()}"
    return Excess(limit, f"The command had {used} {what}; the limit is {allowed} ({setting}).")
