"""`self.env`: the capabilities a run was granted. What was not granted says so when it is used.

No capability crosses the wire of this version: the names below are reserved, so that pipelines
which use them fail with a clear message instead of an AttributeError.
"""

from __future__ import annotations

from pipelines.errors import NotGranted

CAPABILITIES = ("files", "http", "runs", "secrets", "storage")


class Env:
    """The capabilities of one run."""

    __slots__ = ()

    def __getattr__(self, name: str) -> object:
        if name in CAPABILITIES:
            raise NotGranted(
                f"self.env.{name} is not granted to this run: this version of the platform gives "
                "pipelines steps only (for files, secrets and network, use step.sh)"
            )
        raise AttributeError(f"self.env has no {name!r}; it may have {', '.join(CAPABILITIES)}")
