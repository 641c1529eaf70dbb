"""Labels: what a command asks of its worker, and what a worker has.

Pure. A queued command lies in a pool, named by the labels it needs, so that a store can find what a
worker may take without looking at what it may not. A memoised one lies in RECALL first: any worker
may find out whether its result is known already.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ci_platform.errors import InvalidRequest
from ci_platform.model import Json

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=-]{0,63}")
LABELS_MAX = 16  # of a command; and of a worker, beside those it has by itself
RECALL = "$recall"  # no label begins so
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def parse_labels(given: str) -> tuple[str, ...]:
    """Read `gpu,arm64`. Raises InvalidRequest."""
    labels = tuple(dict.fromkeys(one.strip() for one in given.split(",") if one.strip()))
    if len(labels) > LABELS_MAX:
        raise InvalidRequest(f"{len(labels)} labels: at most {LABELS_MAX}", field="labels")
    for label in labels:
        if LABEL.fullmatch(label) is None:
            raise InvalidRequest(
                f"{label[:80]!r} is not a label: up to 64 letters, digits and . _ : / = -, "
                "beginning with a letter or digit",
                field="labels",
            )
    return labels


def own_labels() -> tuple[str, ...]:
    """Those that every worker has by itself: linux, amd64, linux/amd64."""
    system = platform.system().lower()
    machine = platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine, machine)
    return (system, architecture, f"{system}/{architecture}")


def pool_of(spec: Mapping[str, Json]) -> str:
    """Where a new command waits to be claimed."""
    return RECALL if spec.get("cache") else pool_of_labels(spec.get("labels") or ())


def pool_of_labels(labels: Iterable[str]) -> str:
    return " ".join(sorted(set(labels)))


def serves(labels: Collection[str], pool: str) -> bool:
    """Whether a worker with these labels may run the commands of a pool."""
    return pool != RECALL and set(pool.split()) <= set(labels)


def most_wanting(pools: Iterable[str]) -> Sequence[str]:
    """Pools in the order a worker empties them: what few workers can do goes first."""
    return sorted(pools, key=lambda pool: (-len(pool.split()), pool))
