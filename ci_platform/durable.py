"""Making a file of a local object store survive a power cut, before anything refers to it."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Write it out: it, and the two directories whose entries name it."""
    for target in (path, path.parent, path.parent.parent):
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
